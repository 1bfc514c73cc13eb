"""What computing with some of the weights costs in perplexity, and what it saves in decoding, on one decoder.

    python benchmarks/skipping.py quality [FOLDER] [--step 'skip: teal, share: 0.4' …] [--windows 8] [--length 512] [--samples 16]
    python benchmarks/skipping.py decode [FOLDER | --layers 16] [--step …] [--threads 1] [--rounds 10]

FOLDER is a decoder (default: SmolLM2-135M; with --layers a random one of the 1B shape). Calibration text is the
program's own default. `quality` gives perplexity over the first windows of the task `perplexity`'s text, over the dense
model's; `decode` the median CPU time per token beside the dense model in turns, in bfloat16. Both print Markdown as they go.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

QUALITY = [
    *[f"skip: teal, share: {share}" for share in (0.25, 0.4, 0.5)],
    *[f"skip: cats, share: {share}" for share in (0.3, 0.5, 0.7)],
    *[f"moefy: random, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative")],
    *[f"moefy: kmeans, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative")],
    *[
        f"moefy: coactivation, active: 0.5, router: {router}"
        for router in ("oracle", "centroid", "representative", "learned")
    ],
    *[f"moefy: cmoe, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative", "learned")],
]
DECODE = ["skip: teal, share: 0.0", "skip: teal, share: 0.4", "skip: teal, share: 0.5", "skip: cats, share: 0.5"]


def steps(written: list[str]) -> dict[str, Any]:
    """Steps as a manifest writes them."""
    import yaml

    from sparsebench.steps.registry import single

    found = {}
    for text in written:
        (verb, name), *rest = yaml.safe_load("{" + text + "}").items()
        found[text] = single(verb, name, **dict(rest))
    return found


def made(parent: Path, targets: dict[Any, Path], text: Any) -> dict[Any, Any]:
    """Make folders, those that share a pass together; each step's evidence."""
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds

    told: dict[Any, Any] = {}
    passes: dict[Any, dict[Any, Path]] = {}
    for step, folder in targets.items():
        passes.setdefault((step.verb, kinds()[step.verb].shares(step)), {})[step] = folder
    for (verb, _), own in passes.items():
        kinds()[verb].load()(parent, own, Context("decoder", 0, "float32", lambda: text), told.__setitem__)
    for found in told.values():
        if isinstance(found, Exception):
            raise found
    return told


def quality(given: argparse.Namespace, folder: Path, work: Path) -> None:
    """Perplexity of each step over the dense model's."""
    from shrink import calibration, scored

    text, dense = calibration(folder, given.samples, given.length), scored(folder, None, given)
    print(f"| step | perplexity / {dense:.3f} | note |\n|---|---|---|", flush=True)
    chosen = steps(given.step or QUALITY)
    folders = {step: work / str(number) for number, step in enumerate(chosen.values())}
    found = made(folder, folders, text)
    for words, step in chosen.items():
        print(f"| {words} | {scored(folders[step], None, given) / dense:.3f} | {found[step].note} |", flush=True)


def decode(given: argparse.Namespace, folder: Path, work: Path) -> None:
    """Milliseconds of a token, beside dense."""
    import torch
    from decode import Runner
    from shrink import calibration

    from sparsebench.runtime.engines.base import SavedModel

    torch.set_num_threads(given.threads)
    text = drawn(folder, given) if given.layers else calibration(folder, given.samples, given.length)
    print("| step | dense ms | ms | × dense | prefill × dense | kernel |\n|---|---|---|---|---|---|", flush=True)
    with torch.inference_mode():
        dense = Runner("hf", SavedModel(folder, "decoder", "bfloat16"))
        for number, (words, step) in enumerate(steps(given.step or DECODE).items()):
            made(folder, {step: work / str(number)}, text)
            own = Runner("skip", SavedModel(work / str(number), "decoder", "bfloat16"))
            for _ in range(given.rounds):
                dense.turn()
                own.turn()
            one, other = median(dense.times) * 1e3, median(own.times) * 1e3
            first = median(dense.prefills) / median(own.prefills)
            print(
                f"| {words} | {one:.2f} | {other:.2f} | {one / other:.2f} | {first:.2f} | {own.engine.kernel} |",
                flush=True,
            )
            dense.times.clear()
            dense.prefills.clear()
            del own
            gc.collect()


def drawn(folder: Path, given: argparse.Namespace) -> Any:
    """Random tokens, for a model that has no tokenizer."""
    import torch

    from sparsebench.models.batch import Batch
    from sparsebench.steps.calibration import Calibrated

    ids = torch.randint(3, 1000, (given.samples, 64), generator=torch.Generator().manual_seed(0))
    return Calibrated(Batch(ids, torch.ones_like(ids, dtype=torch.bool)), "", "", ids.numel(), ())


def model(given: argparse.Namespace, work: Path) -> Path:
    """The dense model."""
    if given.folder:
        return Path(given.folder)
    from decode import ONE_BILLION, SMOLLM2

    from sparsebench import sources
    from sparsebench.models.prepare import prepare
    from sparsebench.models.random_weights import write_random

    if given.layers:
        return write_random({**ONE_BILLION, "num_hidden_layers": given.layers}, work / "dense", "decoder", "bfloat16")
    prepare(sources.fetch(sources.parse(SMOLLM2), sources.Cache()), work / "dense", "decoder", "bfloat16")
    return work / "dense"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "decode"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--step", action="append")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skipping-") as work:
        {"quality": quality, "decode": decode}[given.what](given, model(given, Path(work)), Path(work))


if __name__ == "__main__":
    main()
