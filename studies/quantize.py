"""What quantizing costs in quality, alone and after pruning, and what it needs in memory.

    python studies/quantize.py [--model smollm2] [--model minilm] [--model g2p] [--windows 8] [--samples 16] [--folder WORK]
    python studies/quantize.py --shape 7b [--blocks 1] [--samples 8]
    python studies/quantize.py --sizes [--model smollm2 | --shape 1b]

The models are those of quickstart.yaml; smollm2 is scored by perplexity (so many windows), minilm and g2p by their first
task there. Prints Markdown: for each version the metric and its ratio to dense and to the version that it was made from,
‖W - Ŵ‖ / ‖W‖, bits a weight, whether all zeros of its parent are zero, weights that rounding made zero, and seconds (of all
that were made together). With ``--shape`` it is the peak of anonymous memory while random weights of that shape (see
shapes.py) are quantized. With ``--sizes`` it is how many bits a prunable weight takes in each storage format after pruning by
magnitude and quantizing, and the same over the bounds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from shapes import SHAPES

from sparsebench import processor, sources
from sparsebench.benchmarks import ScoredModel
from sparsebench.benchmarks.contract import TaskSpec
from sparsebench.benchmarks.scoring import score
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.prepare import prepare
from sparsebench.models.random_weights import write_random
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import DEFAULT, Calibrated, tokens
from sparsebench.steps.contract import Context, Step
from sparsebench.steps.prune.sweep import make_pruned
from sparsebench.steps.quantize.sweep import make_quantized
from sparsebench.steps.registry import single
from sparsebench.storage import measure

ROOT = Path(__file__).parent.parent
NAMES = {"smollm2": "smollm2-135m", "minilm": "minilm-l6", "g2p": "g2p-t5"}
ALONE = {
    "int8": single("quantize", "int8"),
    "int4": single("quantize", "int4"),
    "int4 gptq": single("quantize", "int4", rounding="gptq"),
}
SIZED = {name: ALONE[name] for name in ("int8", "int4")}
AFTER = {
    "then int8": single("quantize", "int8"),
    "then int8 gptq": single("quantize", "int8", rounding="gptq"),
    "then int4": single("quantize", "int4"),
    "then int4 gptq": single("quantize", "int4", rounding="gptq"),
}


def raising(step: Step, result: Any) -> None:
    """Raise a step's error."""
    if isinstance(result, Exception):
        raise result


def made(
    parent: Path, family: Any, wanted: dict[str, Step], read: Calibrated | None, label: str, work: Path
) -> list[Any]:
    """(label, folder, evidence) of every version of ``parent``."""
    named = {one: (f"{label}{name}", work / f"{label}{name}".replace(" ", "-")) for name, one in wanted.items()}
    found: list[Any] = []

    def emit(step: Step, result: Any) -> None:
        raising(step, result)
        found.append((*named[step], result))

    tokens: Any = (lambda: read) if read else None
    context = Context(family, dtype=compute_dtype(parent), calibration_tokens=tokens)
    make_quantized(parent, {one: folder for one, (_, folder) in named.items()}, context, emit)
    return found


def compute_dtype(folder: Path) -> str:
    """The precision to calculate in, as in a run: float32 where this machine emulates that of the weights."""
    names = {"BF16": "bfloat16", "F16": "float16"}
    stored = {names.get(info.dtype, "float32") for info in Checkpoint(folder).tensors.values()}
    return processor.compute_dtype(min(stored))


def kept(parent: Path, folder: Path, family: Any) -> bool:
    """Whether every zero of a prunable weight of ``parent`` is zero in ``folder``."""
    before, after = open_checkpoint(parent), open_checkpoint(folder)
    names = [name for name, part in parts(before, family).items() if part.prunable]
    return all(not bool(after.load(name)[before.load(name) == 0].any()) for name in names)


def fetched(name: str, dense: Path, cache: sources.Cache) -> tuple[Any, dict[str, Any]]:
    """One of quickstart.yaml's models in ``dense``; its family, and the manifest."""
    manifest = yaml.safe_load((ROOT / "quickstart.yaml").read_text())
    model = next(one for one in manifest["models"] if one["name"] == NAMES[name])
    source = sources.parse(model["source"].replace("path:", f"path:{ROOT}/"))
    prepare(sources.fetch(source, cache), dense, model["family"], model.get("dtype", "auto"))
    return model["family"], manifest


def cut(asked: argparse.Namespace, dense: Path) -> Any:
    """Random weights of the shape that was asked for, as deep as asked, in ``dense``; their family and vocabulary."""
    family, config = SHAPES[asked.shape]
    config = {**config, **({"vocab_size": 1024} if asked.sizes else {})}  # embeddings are not prunable
    depths = [key for key in config if key in ("num_hidden_layers", "num_layers", "num_decoder_layers")]
    write_random({**config, **dict.fromkeys(depths, asked.blocks)}, dense, family)  # type: ignore[arg-type]
    return family, config["vocab_size"]


def storage(name: str, work: Path, asked: argparse.Namespace) -> None:
    """The sizes of one model."""
    dense, pruned = work / "dense", {sparsity: work / f"{sparsity:.0%}" for sparsity in (0.5, 0.9)}
    family = cut(asked, dense)[0] if asked.shape else fetched(name, dense, sources.Cache())[0]
    targets = {single("prune", "magnitude", sparsity=sparsity): folder for sparsity, folder in pruned.items()}
    make_pruned(dense, targets, Context(family), raising)
    print(
        f"| {name} | zeros | dense | raw-value bound | packed | over the bound | entropy bound | archive | over the bound |"
    )
    print("|---" * 9 + "|")
    for label, parent in {"": dense, **{f"{share:.0%}, ": folder for share, folder in pruned.items()}}.items():
        for way, wanted in SIZED.items():
            ((shown, folder, _),) = made(parent, family, {way: wanted}, None, label, work)
            found = measure(folder, family, ["dense", "packed", "archive"], work / "sized")
            plain, packed, archive = (8 * (size.prunable_bytes or 0) / found.prunable for size in found.sizes)
            raw, entropy = (8 * bound / found.prunable for bound in (found.raw_value_bound, found.entropy_bound))
            assert all(size.round_trip in (None, True) for size in found.sizes)
            cells = [shown, f"{1 - found.nonzero / found.prunable:.1%}", f"{plain:.3f}"]
            cells += [f"{raw:.3f}", f"{packed:.3f}", f"{packed / raw:.4f}"]
            cells += [f"{entropy:.3f}", f"{archive:.3f}", f"{archive / entropy:.4f}"]
            print(f"| {' | '.join(cells)} |", flush=True)
            shutil.rmtree(folder)


def quality(name: str, work: Path, asked: argparse.Namespace) -> None:
    """The table of one model."""
    dense, cache = work / "dense", sources.Cache()
    family, manifest = fetched(name, dense, cache)
    task = TaskSpec("perplexity", limit=asked.windows) if family == "decoder" else None
    first = manifest["benchmarks"][family][0]
    task = task or TaskSpec(first["task"], limit=first.get("limit"))
    length = min(512, 64 if name == "g2p" else 256 if name == "minilm" else 512)
    read = tokens(dense, family, replace(DEFAULT, samples=asked.samples, length=length), cache)
    pruned = work / "sparsegpt"
    dtype = compute_dtype(dense)
    context = Context(family, dtype=dtype, calibration_tokens=lambda: read)
    make_pruned(dense, {single("prune", "sparsegpt", sparsity=0.5): pruned}, context, raising)
    titles = (name, task.task, "over dense", "over its parent", "error", "bits", "zeros kept", "rounded to zero", "s")
    print(f"| {' | '.join(titles)} |")
    print("|---" * 9 + "|")
    values: dict[Path, float] = {}

    def row(label: str, folder: Path, parent: Path, evidence: Any = None) -> None:
        found: list[Any] = []
        score(ScoredModel(folder, family, dtype), [task], cache, lambda _, result: found.append(result))
        value = values[folder] = found[0].score
        cells = [label, f"{value:.4f}", f"{value / values[dense]:.4f}", f"{value / values[parent]:.4f}"]
        if evidence:
            cells += [f"{evidence.relative_error:.4f}", f"{evidence.bits:.2f}"]
            cells += [str(kept(parent, folder, family)), f"{evidence.rounded_to_zero:,}", f"{evidence.seconds:.0f}"]
        print(f"| {' | '.join(cells + [''] * (9 - len(cells)))} |", flush=True)

    row("dense", dense, dense)
    row("sparsegpt 50%", pruned, dense)
    for label, folder, evidence in made(dense, family, ALONE, read, "", work):
        row(label, folder, dense, evidence)
    for label, folder, evidence in made(pruned, family, AFTER, read, "sparsegpt 50%, ", work):
        row(label, folder, pruned, evidence)


class Peak:
    """The largest amount of anonymous memory seen, looked at fifty times a second."""

    def __enter__(self) -> Peak:
        self.bytes, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            status = Path("/proc/self/status").read_text().splitlines()
            held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, held)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def memory(work: Path, asked: argparse.Namespace) -> None:
    """The peak for every way by itself and for all together, over some blocks of a large model."""
    import torch

    dense = work / "dense"
    family, vocabulary = cut(asked, dense)
    ids = torch.randint(3, vocabulary, (asked.samples, 512))
    read = Calibrated(Batch(ids, torch.ones_like(ids)), "", "", ids.numel(), ())
    print("| way | anonymous GB | s |\n|---|---|---|")
    ways = {name: {name: ALONE[name]} for name in ALONE}
    for name, wanted in {**ways, "all": {name: ALONE[name] for name in ways}}.items():
        start = time.perf_counter()
        with Peak() as peak:
            made(dense, family, wanted, read, "", work)
        print(f"| {name} | {peak.bytes / 1e9:.2f} | {time.perf_counter() - start:.0f} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=NAMES)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    asked = parser.parse_args()
    print(f"{processor.cpu_model()}\n")
    for name in [asked.shape] if asked.shape else asked.model or list(NAMES):
        with tempfile.TemporaryDirectory(dir=asked.folder) as work:
            if asked.sizes:
                storage(name, Path(work), asked)
            elif asked.shape:
                memory(Path(work), asked)
            else:
                quality(name, Path(work), asked)
        print()


if __name__ == "__main__":
    main()
