"""Every one-shot method at five sparsities on one model: made here, loaded by stock transformers, counted there.

    python studies/counted.py FOLDER --family decoder [--samples 16] [--length 512] [--method wanda …]

FOLDER is a checkpoint. What is counted are the zeros in the linear layers of the transformer blocks as transformers built them;
the dense model's own zeros are said. Expected are round(sparsity × size) zeros in every matrix, or as many in every row
where rows compete for themselves; the distance from it is in weights, the largest of any matrix or row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from sparsebench.steps.prune import registry

SWEEP = Path(__file__).parent / "sweep.py"
FIVE = (0.1, 0.5, 0.9, 0.95, 0.99)
CLASSES = {"decoder": "AutoModelForCausalLM", "encoder": "AutoModel", "encoder-decoder": "AutoModelForSeq2SeqLM"}


def matrices(folder: Path, family: str) -> dict[str, torch.Tensor]:
    """The weights of all linear layers inside lists of blocks, [out, in], after one pass whose results are finite."""
    model = getattr(transformers, CLASSES[family]).from_pretrained(folder).eval()
    ids = {"input_ids": torch.arange(16)[None] + 5}
    if family == "encoder-decoder":
        ids["decoder_input_ids"] = ids["input_ids"]
    with torch.inference_mode():
        if not model(**ids)[0].isfinite().all():
            raise SystemExit(f"{folder}: the results are not finite")
    lists = [name for name, part in model.named_modules() if isinstance(part, torch.nn.ModuleList)]
    found: dict[str, torch.Tensor] = {}
    for name, part in model.named_modules():
        if any(name.startswith(f"{one}.") for one in lists):
            if isinstance(part, torch.nn.Linear):
                found[name] = part.weight.detach()
            elif isinstance(part, transformers.pytorch_utils.Conv1D):
                found[name] = part.weight.detach().T
    return found


def distance(weights: torch.Tensor, sparsity: float, rows: bool) -> int:
    """Zeros too many or too few, at most, in the matrix or in one of its rows."""
    groups = weights if rows else weights.reshape(1, -1)
    zeros = (groups == 0).sum(dim=1)
    return int((zeros - round(sparsity * groups.shape[1])).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", required=True, choices=CLASSES)
    parser.add_argument(
        "--method", nargs="+", default=[name for name, row in registry.methods().items() if row.granularities]
    )
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--calibration", default="", help="other keys of the calibration")
    asked = parser.parse_args()
    transformers.logging.disable_progress_bar()
    dense = matrices(asked.folder, asked.family)
    size = sum(one.numel() for one in dense.values())
    print(f"{asked.folder.name}: {len(dense)} matrices, {size:,} weights, {zeros(dense):,} of them 0")
    print("| method | " + " | ".join(f"{share:.0%}" for share in FIVE) + " | farthest from its quota, weights |")
    print("|---|" + "---|" * (len(FIVE) + 1))
    text = f"{{samples: {asked.samples}, length: {asked.length}, {asked.calibration}}}"
    for method in asked.method:
        rows = registry.methods()[method].granularities[0] == "row"
        with tempfile.TemporaryDirectory(prefix="counted-") as out:
            step = f"prune: {method}, sparsity: {list(FIVE)}"
            words = [SWEEP, asked.folder, out, step, "--family", asked.family, "--calibration", text]
            subprocess.run([sys.executable, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
            versions = {share: matrices(Path(out) / f"{share:.2f}", asked.family) for share in FIVE}
        shares = [f"{zeros(version) / size:.5%}" for version in versions.values()]
        far = max(distance(one, share, rows) for share, version in versions.items() for one in version.values())
        print(
            f"| {method} | " + " | ".join(shares) + f" | {far}{' in a row' if rows else ' in a matrix'} |", flush=True
        )


def zeros(found: dict[str, Any]) -> int:
    """Exact zeros in all of them."""
    return sum(int((one == 0).sum()) for one in found.values())


if __name__ == "__main__":
    main()
