"""What smaller shapes cost in perplexity and save in time, on one decoder.

    python benchmarks/shrink.py quality FOLDER [TEXT] --out results.jsonl [--windows 8] [--length 512] [--samples 16]
    python benchmarks/shrink.py depth FOLDER [TEXT] --out results.jsonl [--blocks 2 4]
    python benchmarks/shrink.py speed FOLDER --out results.jsonl [--length 512] [--rounds 15]
    python benchmarks/shrink.py memory FOLDER --out results.jsonl [--samples 16]

FOLDER is a decoder, TEXT a raw WikiText file (default: the passages of the task `perplexity`, CoQA's); the calibration text is
the program's own default. What is in results.jsonl
already is not run again, so that a benchmark can be stopped and continued. Perplexity is over the first windows of TEXT;
times are medians of dense and smaller model in alternation, in one process, float32, logits of the last position only.
`memory` is the peak of anonymous memory (libraries included) of cutting FOLDER, such as one that benchmarks/shapes.py makes,
with random tokens as calibration text.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

WIDTH: list[tuple[str, dict[str, Any]]] = [
    ("flap", {"compensation": "none"}),
    ("flap", {}),
    ("flap", {"compensation": "least_squares"}),
    ("activation", {}),
    ("activation", {"compensation": "least_squares"}),
    ("l2", {}),
    ("l2", {"compensation": "least_squares"}),
    ("random", {}),
    ("random", {"compensation": "least_squares"}),
    ("taylor", {"labels": "text"}),
    ("taylor", {"labels": "own"}),
    ("taylor", {"labels": "text", "compensation": "least_squares"}),
    ("taylor", {"labels": "text", "iterations": 4}),
    ("activation", {"iterations": 4}),
    ("flap", {"compensation": "none", "uneven": True}),
    ("activation", {"uneven": True}),
]
DEPTH = ("influence", "angular", "random", "sleb")


def calibration(folder: Path, samples: int, length: int) -> Any:
    """The default text as the model's tokens."""
    from dataclasses import replace

    from sparsebench import sources
    from sparsebench.steps.calibration import DEFAULT, tokens

    wanted = replace(DEFAULT, samples=samples, length=length)
    return tokens(folder, "decoder", wanted, sources.Cache(), offline=True)


def scored(folder: Path, text: Path | None, given: argparse.Namespace) -> float:
    """Perplexity over the first windows."""
    from sparsebench import sources
    from sparsebench.benchmarks import TaskSpec
    from sparsebench.benchmarks.perplexity import RunningText, perplexity, wikitext

    read = wikitext(text) if text else RunningText.of(TaskSpec("perplexity"), sources.Cache()).text
    return perplexity(folder, read[: given.windows * given.length * 12], given.length, None, given.windows)[0]


def made(parent: Path, names: dict[str, Any], given: argparse.Namespace, out: Any) -> None:
    """Make, score and drop each step that has no result yet."""
    from sparsebench.errors import SparsebenchError
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds

    text = None
    for name, step in names.items():
        if name in out:
            continue
        if kinds()["shrink"].reads_text(step) and text is None:
            text = calibration(parent, given.samples, given.length)
        with tempfile.TemporaryDirectory(prefix="shrunk-") as scratch:
            folder = Path(scratch) / "model"
            told: dict[Any, Any] = {}
            started = time.perf_counter()
            context = Context("decoder", given.seed, "float32", lambda found=text: found)
            kinds()["shrink"].load()(parent, {step: folder}, context, told.__setitem__)
            if isinstance(told[step], SparsebenchError):
                raise told[step]
            seconds = round(time.perf_counter() - started)
            out.add(name, perplexity=round(scored(folder, given.text, given), 3), seconds=seconds, note=told[step].note)


def quality(given: argparse.Namespace, out: Any) -> None:
    """Every criterion and compensation with a fifth of the blocks' parameters gone."""
    from sparsebench.steps.registry import label, single

    if "dense" not in out:
        out.add("dense", perplexity=round(scored(given.folder, given.text, given), 3))
    steps = [single("shrink", name, parameters=0.8, **settings) for name, settings in WIDTH]
    made(given.folder, {f"{label(step)}, seed {given.seed}": step for step in steps}, given, out)


def depth(given: argparse.Namespace, out: Any) -> None:
    """Every criterion for whole blocks."""
    from sparsebench.steps.registry import label, single

    if "dense" not in out:
        out.add("dense", perplexity=round(scored(given.folder, given.text, given), 3))
    steps = [single("shrink", name, blocks=count) for count in given.blocks for name in DEPTH]
    made(given.folder, {f"{label(step)}, seed {given.seed}": step for step in steps}, given, out)


def speed(given: argparse.Namespace, out: Any) -> None:
    """A forward of ``length`` tokens with half of the neurons gone, and with a quarter of the blocks, against the dense one."""
    import torch

    from sparsebench.models.load import load_model
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds, label, single

    depth = int(load_model(given.folder, "decoder").config.num_hidden_layers)
    for step in (
        single("shrink", "l2", keep=0.5, of="neurons"),
        single("shrink", "last", blocks=round(depth / 4)),
    ):
        name = f"forward of {given.length}, {label(step)}"
        if name in out:
            continue
        scratch = Path(tempfile.mkdtemp(prefix="shrunk-"))
        kinds()["shrink"].load()(given.folder, {step: scratch / "model"}, Context("decoder"), lambda *_: None)
        models = [load_model(folder, "decoder", "float32") for folder in (given.folder, scratch / "model")]
        ids = torch.randint(5, 1000, (1, given.length), generator=torch.Generator().manual_seed(0))
        times: list[list[float]] = [[], []]
        with torch.inference_mode():
            for number in range(given.rounds + 2):
                for side in (0, 1) if number % 2 else (1, 0):
                    started = time.perf_counter()
                    models[side](input_ids=ids, use_cache=False, logits_to_keep=1)
                    if number >= 2:
                        times[side].append(time.perf_counter() - started)
        ratios = sorted(dense / small for dense, small in zip(*times, strict=True))
        size = [sum(one.numel() for one in model.parameters()) for model in models]
        out.add(
            name,
            dense_ms=round(1000 * statistics.median(times[0]), 1),
            smaller_ms=round(1000 * statistics.median(times[1]), 1),
            ratio=round(statistics.median(ratios), 3),
            quartiles=[round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
            parameters=round(size[1] / size[0], 3),
        )
        shutil.rmtree(scratch, ignore_errors=True)


def memory(given: argparse.Namespace, out: Any) -> None:
    """The peak while a fifth of the blocks' parameters goes, by criteria that read weights alone and by one that reads text."""
    import torch

    from benchmarks.quantize import Peak
    from sparsebench.models.batch import Batch
    from sparsebench.steps.calibration import Calibrated
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds, single

    ids = torch.randint(5, 1000, (given.samples, given.length), generator=torch.Generator().manual_seed(0))
    text = Calibrated(Batch(ids, torch.ones_like(ids)), "", "", ids.numel(), ())
    for name, settings in (("random", {}), ("l2", {}), ("activation", {}), ("l2", {"compensation": "least_squares"})):
        step = single("shrink", name, parameters=0.8, **settings)
        told = f"memory {given.folder.name} {name} {settings.get('compensation', '')}".strip()
        if told in out:
            continue
        with tempfile.TemporaryDirectory(prefix="shrunk-", dir=given.folder.parent) as scratch, Peak() as peak:
            started = time.perf_counter()
            found: dict[Any, Any] = {}
            context = Context("decoder", read=lambda: text)
            kinds()["shrink"].load()(given.folder, {step: Path(scratch) / "model"}, context, found.__setitem__)
            seconds = round(time.perf_counter() - started)
        out.add(
            told,
            anonymous_gb=round(peak.bytes / 1e9, 2),
            seconds=seconds,
            note=getattr(found[step], "note", str(found[step])),
        )


def main() -> None:
    """Read the command line and run one part."""
    from benchmarks.methods import Results

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("quality", "depth", "speed", "memory"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4])
    given = parser.parse_args()
    {"quality": quality, "depth": depth, "speed": speed, "memory": memory}[given.part](given, Results(given.out))


if __name__ == "__main__":
    main()
