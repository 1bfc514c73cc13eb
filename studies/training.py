"""Where the time of training a whole model goes, beside what its matrix products alone would take.

    python studies/training.py FOLDER [--length 256] [--batch 8] [--steps 6] [--match none] [--dtype bfloat16]

FOLDER is a decoder. All of its weights are trained on random tokens by `recover: finetune` and `recover: distill`, in the
program's own loop, which keeps freed memory for itself, and without that. `products` is the time of every product of a step
with a matrix of the model, one after another and nothing else: forward, and backward for inputs and weights. `peak` is the
speed of a square product of 4,096. Operations of attention between tokens are left out, so that shares are a little too low.
Run it with nothing beside.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from sparsebench import heap
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.batch import Batch
from sparsebench.models.replay.blockwise import TOKENS_AT_ONCE
from sparsebench.models.shape.topology import checked_parts
from sparsebench.steps.contract import Context
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.recover.trainer import Pruning, State, Trainer
from sparsebench.steps.recover.whole import Training
from sparsebench.steps.registry import single

KINDS = {
    "matrix products": ("mm", "linear", "mkldnn", "baddbmm"),
    "attention between tokens": ("attention",),
    "AdamW and clipping": ("adam", "_foreach", "linalg_vector_norm", "optimizer"),
    "copies, casts and zeros of gradients": ("copy_", "to", "zero_", "fill_", "clone", "empty", "cat", "masked_fill_"),
    "loss over the vocabulary": ("log_softmax", "nll", "logsumexp", "gather", "embedding"),
}
"""From the names of torch's operations to what they are for; all others are norms, activations and sums."""


def fastest(work: Callable[[], object], times: int) -> float:
    """The seconds of the fastest of several runs, after one that does not count."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def products(shapes: list[tuple[int, int]], tokens: int, dtype: torch.dtype) -> tuple[float, float]:
    """Seconds and operations of all products of a step over so many tokens with matrices of ``shapes`` (out, in)."""
    seconds, operations = 0.0, 0.0
    for shape in set(shapes):
        out, inner = shape
        inputs, weight, given = (torch.randn(*one).to(dtype) for one in ((tokens, inner), shape, (tokens, out)))
        one = fastest(lambda x=inputs, w=weight: x @ w.T, 5)  # type: ignore[misc]
        one += fastest(lambda g=given, w=weight: g @ w, 5)  # type: ignore[misc]
        one += fastest(lambda g=given, x=inputs: g.T @ x, 5)  # type: ignore[misc]
        seconds += one * shapes.count(shape)
        operations += 6.0 * tokens * out * inner * shapes.count(shape)
    return seconds, operations


def trainer(folder: Path, place: Path, name: str, given: argparse.Namespace, vocabulary: int) -> Trainer:
    """The program's own loop over random tokens, its teacher asked already."""
    asked = {"tokens": given.batch * given.length * given.steps, "batch": given.batch, "precision": given.dtype}
    asked |= {"match": given.match} if name == "distill" else {}
    step = single("recover", name, **asked)
    checkpoint = Checkpoint(folder)
    training = Training(checkpoint, checkpoint, step, Context("decoder"))
    ids = torch.randint(vocabulary, (given.batch * given.steps + 1, given.length))
    text = TrainingText("decoder", Batch(ids, torch.ones_like(ids, dtype=torch.bool)))
    return training._make_trainer(training._load_student(), text, 1, place, [folder] if name == "distill" else [])


def timed(loop: Trainer, given: argparse.Namespace) -> tuple[list[float], dict[str, float]]:
    """The seconds of each optimizer step, and the share of the last one's by what was done in it."""
    leaves = [*loop.weights.leaves, *loop.extra]
    optimizer = torch.optim.AdamW(leaves, lr=1e-6)
    state, seconds = State(), []

    def step(number: int) -> None:
        rows = list(range(number * given.batch, (number + 1) * given.batch))
        state.number = number
        loop._step(state, rows, loop.text.counts(), leaves, optimizer, Pruning())

    for number in range(given.steps - 1):
        began = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - began)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        step(given.steps - 1)
    spent: dict[str, float] = defaultdict(float)
    for event in seen.key_averages():
        name = event.key.removeprefix("aten::").lower()
        kind = next((kind for kind, names in KINDS.items() if any(part in name for part in names)), "the rest")
        spent[kind] += event.self_cpu_time_total
    whole = sum(spent.values())
    return seconds[1:], {kind: one / whole for kind, one in sorted(spent.items(), key=lambda pair: -pair[1])}


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=256, help="tokens a sample")
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--steps", type=int, default=6, help="the first is not counted, the last is looked into")
    parser.add_argument("--match", default="none", help="what `distill` compares inside")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of matrix products")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    checkpoint = Checkpoint(given.folder)
    vocabulary = int(checkpoint.config["vocab_size"])
    shapes = [
        info.shape
        for name in checked_parts(checkpoint, "decoder")
        if len((info := checkpoint.tensors[name]).shape) == 2
    ]
    shapes.append((vocabulary, int(checkpoint.config["hidden_size"])))
    tokens = given.batch * given.length
    at_once = min(tokens, max(1, TOKENS_AT_ONCE // given.length) * given.length)
    square = torch.randn(4096, 4096).to(dtype)
    peak = 2.0 * 4096**3 / fastest(lambda: square @ square, 5)
    least, operations = products(shapes, at_once, dtype)
    least, operations = least * tokens / at_once, operations * tokens / at_once
    share = operations / least / peak
    print(f"{os.cpu_count()} processors, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.dtype}")
    print(
        f"peak {peak / 1e9:.0f} GFLOP/s; the products of a step of {tokens:,} tokens: {least:.2f} s, {share:.0%} of it"
    )
    print(
        "\n| step | s [least, most] | tokens/s | share of the peak | products alone | time in |\n|---|---|---|---|---|---|"
    )
    # What was kept once changes the process for good, so that it comes last.
    for kept, name in product((False, True), ("finetune", "distill")):
        with tempfile.TemporaryDirectory() as place, heap.kept_for_reuse() if kept else nullcontext():
            seconds, spent = timed(trainer(given.folder, Path(place), name, given, vocabulary), given)
        middle = statistics.median(seconds)
        told = ", ".join(f"{kind} {share:.0%}" for kind, share in spent.items())
        print(
            f"| {name}{'' if kept else ', freed memory given back'} | {middle:.2f} [{min(seconds):.2f}, {max(seconds):.2f}] |"
            f" {tokens / middle:.0f} | {operations / middle / peak:.0%} | {least / middle:.0%} | {told} |"
        )


if __name__ == "__main__":
    main()
