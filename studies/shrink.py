"""What smaller shapes cost in perplexity and save in time, on one decoder.

    python studies/shrink.py quality FOLDER [TEXT] --out results.jsonl [--windows 8] [--length 512] [--samples 16]
    python studies/shrink.py depth FOLDER [TEXT] --out results.jsonl [--blocks 2 4]
    python studies/shrink.py speed FOLDER --out results.jsonl [--length 512] [--rounds 15]
    python studies/shrink.py memory FOLDER --out results.jsonl [--samples 16]

FOLDER is a decoder, TEXT a raw WikiText file (default: the passages of the task `perplexity`, CoQA's); the calibration text is
the program's own default. What is in results.jsonl
already is not run again, so that a benchmark can be stopped and continued. Perplexity is over the first windows of TEXT;
times are medians of dense and smaller model in alternation, in one process, float32: a prompt with logits of the last position
only and of all, and one new token behind it, beside the ratio of the bytes that it reads. With a quarter of the blocks gone
`time_gone` is to be `time_in_last_blocks`, the share of the dense model's time that was measured in them.
`memory` is the peak of anonymous memory (libraries included) of cutting FOLDER, such as one that studies/shapes.py makes,
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
    return tokens(folder, "decoder", wanted, sources.Cache(offline=True))


def scored(folder: Path, text: Path | None, given: argparse.Namespace) -> float:
    """Perplexity over the first windows."""
    from sparsebench import sources
    from sparsebench.benchmarks import TaskSpec
    from sparsebench.benchmarks.running_text import RunningText, wikitext
    from studies.perplexity import perplexity

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
        if step.settings.reads_text() and text is None:
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
    """Half of the neurons gone, and a quarter of the blocks, against the dense model: a prompt, one new token, and the file."""
    from sparsebench.models.modules.load import load_model
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
        folders = (given.folder, scratch / "model")
        models = [load_model(folder, "decoder", "float32") for folder in folders]
        shares = in_blocks(given.folder, models[0], given)
        sizes = [sum(one.numel() for one in model.parameters()) for model in models]
        files = [sum(one.stat().st_size for one in folder.glob("*.safetensors")) for folder in folders]
        read = [bytes_a_token(model, given.length) for model in models]
        out.add(
            name,
            **timed([lambda model=model: prompt(model, given.length, 1) for model in models], given.rounds),
            all_positions=timed([lambda model=model: prompt(model, given.length, 0) for model in models], given.rounds),
            decode=timed([token(model, given.length) for model in models], given.rounds)
            | {"bytes_bound": round(read[0] / read[1], 3)},
            parameters=round(sizes[1] / sizes[0], 3),
            file=round(files[1] / files[0], 3),
            time_in_blocks=round(sum(shares), 4),
            time_in_last_blocks=round(sum(shares[depth - round(depth / 4) :]), 4),
        )
        shutil.rmtree(scratch, ignore_errors=True)


def timed(calls: list[Any], rounds: int) -> dict[str, Any]:
    """The dense model's call and the smaller one's in alternation: medians, their ratio and what share of the time went."""
    times: list[list[float]] = [[], []]
    for number in range(rounds + 2):
        for side in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            calls[side]()
            if number >= 2:
                times[side].append(time.perf_counter() - started)
    ratios = sorted(dense / small for dense, small in zip(*times, strict=True))
    return {
        "dense_ms": round(1000 * statistics.median(times[0]), 1),
        "smaller_ms": round(1000 * statistics.median(times[1]), 1),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        "time_gone": round(1 - 1 / statistics.median(ratios), 4),
    }


def prompt(model: Any, length: int, logits: int) -> Any:
    """A forward of ``length`` tokens; ``logits`` of so many last positions, 0 for all."""
    import torch

    ids = torch.randint(5, 1000, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False, logits_to_keep=logits)


def token(model: Any, length: int) -> Any:
    """A call that reads one new token behind ``length`` tokens, always the same one."""
    import torch

    ids = torch.randint(5, 1000, (1, length + 1), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        cache = model(input_ids=ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

    def call() -> None:
        with torch.inference_mode():
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            cache.crop(-1)

    return call


def bytes_a_token(model: Any, length: int) -> int:
    """What one new token reads in float32: every weight, but no table beside an output head of its own; and keys and values."""
    config = model.config
    table = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * size * length
    return 4 * (sum(one.numel() for one in model.parameters()) - table + cached)


def in_blocks(folder: Path, model: Any, given: argparse.Namespace) -> list[float]:
    """Of each block of the dense model the median share of a forward's time that is measured in it."""
    from sparsebench.models.files.checkpoint import Checkpoint
    from sparsebench.models.replay.skeleton import build_skeleton

    (stack,) = build_skeleton(Checkpoint(folder).config, "decoder").stacks
    began, spent = [0.0], [0.0] * len(stack.blocks)

    def before(*_: Any) -> None:
        began[0] = time.perf_counter()

    handles = []
    for number, place in enumerate(stack.blocks):

        def after(*_: Any, number: int = number) -> None:
            spent[number] = time.perf_counter() - began[0]

        block = model.get_submodule(place.path)
        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    rounds = []
    for number in range(given.rounds + 2):
        started = time.perf_counter()
        prompt(model, given.length, 1)
        whole = time.perf_counter() - started
        if number >= 2:
            rounds.append([own / whole for own in spent])
    for handle in handles:
        handle.remove()
    return [statistics.median(own) for own in zip(*rounds, strict=True)]


def memory(given: argparse.Namespace, out: Any) -> None:
    """The peak while a fifth of the blocks' parameters goes, by criteria that read weights alone and by one that reads text; and
    while a block goes."""
    import torch

    from sparsebench.models.replay.batch import Batch
    from sparsebench.steps.calibration import Calibrated
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds, single
    from studies.quantize import Peak

    ids = torch.randint(5, 1000, (given.samples, given.length), generator=torch.Generator().manual_seed(0))
    text = Calibrated(Batch(ids, torch.ones_like(ids)), "", "", ids.numel(), ())
    fifth, block = {"parameters": 0.8}, {"blocks": 1}
    for name, settings in (
        ("influence", block), ("angular", block), ("random", fifth), ("l2", fifth), ("activation", fifth),
        ("l2", fifth | {"compensation": "least_squares"}),
    ):  # fmt: skip
        step = single("shrink", name, **settings)
        told = f"memory {given.folder.name} {name} {settings.get('compensation', '')}".strip()
        if told in out:
            continue
        with tempfile.TemporaryDirectory(prefix="shrunk-", dir=given.folder.parent) as scratch, Peak() as peak:
            started = time.perf_counter()
            found: dict[Any, Any] = {}
            context = Context("decoder", calibration_tokens=lambda: text)
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
    from studies.methods import Results

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
