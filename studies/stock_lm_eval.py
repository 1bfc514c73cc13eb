"""Scores a model with sparsebench and with stock lm-eval on the same documents, and compares every number.

    python studies/stock_lm_eval.py FOLDER --task piqa --task boolq --limit 50 [--batch-size N] [--stock-batch-size N …]

Without a batch size sparsebench shares the beginnings of inputs and is compared with stock at 16: at most 0.2% of the
outcomes may differ, and with --float32 no log-likelihood by more than 1e-3. With one, sparsebench takes stock's loop,
and no log-likelihood, outcome or score may differ when stock has the same. Exits with 1 when more differs than may. Each
side loads the model and the tasks once; their seconds count. Several stock batch sizes are tried in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec, all_tasks, index
from sparsebench.benchmarks.contract import sampled
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.names import Family

CHOICES = [name for name, task in all_tasks().items() if task.adapter == "harness" and task.parts == 1]
STOCK_BATCH_SIZE = 16
OUTCOMES = 0.002
"""The share of outcomes that may differ when beginnings are shared."""
LIKELIHOOD = 1e-3
"""How far log-likelihoods may then lie apart in float32."""

Answers = dict[tuple[str, str, str], tuple[float, bool]]
"""(log-likelihood, whether greedy decoding gives it) of every (task, context, continuation)."""


@dataclass
class Side:
    """What one harness found: per task its score and standard error, every document's outcome, every answer."""

    scores: dict[str, tuple[float, float]]
    outcomes: dict[str, list[float]]
    answers: Answers
    wall: float = 0.0
    cpu: float = 0.0


def ours(
    options: argparse.Namespace, folder: Path, specs: list[TaskSpec], cache: sources.Cache
) -> tuple[Side, set[str]]:
    """sparsebench's results, and what it says of prefix sharing."""
    found: dict[str, ScoreResult] = {}

    def emit(spec: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            raise result
        found[spec.task] = result

    with recorded() as answers:
        benchmarks.score(ScoredModel(folder, options.family), specs, cache, emit)
    scores = {task: (result.score, result.stderr) for task, result in found.items()}
    outcomes = {task: [outcome.value for outcome in result.outcomes] for task, result in found.items()}
    return Side(scores, outcomes, answers), {str(result.protocol["prefix_sharing"]) for result in found.values()}


def stock(options: argparse.Namespace, folder: Path, specs: list[TaskSpec], cache: sources.Cache, size: int) -> Side:
    """lm-eval's own results for the stock tasks, with only the place of the data changed.

    One command for all tasks mixes their requests in its batches, so for equality each task is asked for by itself.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    scores: dict[str, tuple[float, float]] = {}
    outcomes: dict[str, list[float]] = {}
    with recorded() as answers, tempfile.TemporaryDirectory() as scratch:
        for spec in specs:
            index.write(spec.task, cache, Path(scratch))
        manager = TaskManager(include_path=scratch, include_defaults=False)
        lm = HFLM(pretrained=str(folder), dtype="auto", device="cpu", batch_size=size)
        for part in [[spec] for spec in specs] if options.batch_size else [specs]:
            results = simple_evaluate(
                model=lm,
                tasks=[spec.task for spec in part],
                samples={spec.task: sampled(all_tasks()[spec.task].n, options.limit) for spec in part},
                num_fewshot=options.num_fewshot,
                task_manager=manager,
            )
            assert results is not None
            for spec in part:
                metric, reported = all_tasks()[spec.task].metric, results["results"][spec.task]
                scores[spec.task] = reported[f"{metric},none"], reported[f"{metric}_stderr,none"]
                samples = sorted(results["samples"][spec.task], key=lambda sample: int(sample["doc_id"]))
                outcomes[spec.task] = [float(sample[metric]) for sample in samples]
    return Side(scores, outcomes, answers)


@contextmanager
def recorded() -> Iterator[Answers]:
    """All that lm-eval's Hugging Face model answers meanwhile."""
    from lm_eval.models.huggingface import HFLM

    answers: Answers = {}
    loglikelihood = HFLM.loglikelihood

    def record(self: HFLM, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = loglikelihood(self, requests, *args, **kwargs)
        asked = ((str(request.task_name), *request.args) for request in requests)
        answers.update(zip(asked, found, strict=True))
        return found

    HFLM.loglikelihood = record
    try:
        yield answers
    finally:
        HFLM.loglikelihood = loglikelihood


@contextmanager
def in_float32(folder: Path, family: Family) -> Iterator[Path]:
    """A copy of the model in float32."""
    from sparsebench.models.files.text import load_tokenizer
    from sparsebench.models.modules.load import load_model

    with tempfile.TemporaryDirectory() as copy:
        load_model(folder, family, "float32").save_pretrained(copy)
        load_tokenizer(folder).save_pretrained(copy)
        yield Path(copy)


@contextmanager
def random_t5(tokenizer: Path) -> Iterator[Path]:
    """A small T5 of seeded random weights with another model's tokenizer, in float32."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    from sparsebench.models.files.text import load_tokenizer

    known = load_tokenizer(tokenizer)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(known), d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    with tempfile.TemporaryDirectory() as folder:
        T5ForConditionalGeneration(config).save_pretrained(folder)
        known.save_pretrained(folder)
        yield Path(folder)


def timed(run: Callable[[], Side], name: str) -> Side:
    """Run one side, model and tasks loaded from nothing; print its seconds."""
    start = time.perf_counter(), time.process_time()
    side = run()
    side.wall, side.cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    documents = sum(map(len, side.outcomes.values()))
    print(
        f"{name:30} {side.wall:7.1f} s wall {side.cpu:7.1f} s CPU {documents / side.cpu:7.2f} documents per CPU second"
    )
    return side


def compare(folder: Path, options: argparse.Namespace) -> bool:
    """Score, print seconds, scores and all differences; whether they are no more than may be."""
    specs = [TaskSpec(task, options.limit, options.num_fewshot, batch=options.batch_size) for task in options.task]
    cache, sharing = sources.Cache(), set[str]()

    def run_ours() -> Side:
        side, said = ours(options, folder, specs, cache)
        sharing.update(said)
        return side

    mine = timed(run_ours, f"sparsebench, {options.batch_size or 'auto'}")
    print("prefix sharing:", "; ".join(sorted(sharing)))
    good = True
    for size in options.stock_batch_size or [options.batch_size or STOCK_BATCH_SIZE]:
        theirs = timed(lambda size=size: stock(options, folder, specs, cache, size), f"stock, {size}")
        print(
            f"sparsebench is {theirs.cpu / mine.cpu:.2f} times as fast by CPU, {theirs.wall / mine.wall:.2f} by wall time"
        )
        good &= _differences(mine, theirs, options, size)
    return good


def _differences(mine: Side, theirs: Side, options: argparse.Namespace, size: int) -> bool:
    exact = options.batch_size is not None
    good, documents, differing = True, 0, 0
    for task, values in mine.outcomes.items():
        changed = sum(one != other for one, other in zip(values, theirs.outcomes[task], strict=True))
        pairs = [(mine.answers[key], known) for key, known in theirs.answers.items() if key[0] == task]
        apart = [abs(one[0] - other[0]) for one, other in pairs]
        greedy = sum(one[1] != other[1] for one, other in pairs)
        same = "to the digit" if mine.scores[task] == theirs.scores[task] else "NOT EQUAL"
        print(
            f"  {task:16} {mine.scores[task][0]!r:20} stock {theirs.scores[task][0]!r:20} {same}; {changed} of {len(values)} "
            f"outcomes, {sum(d > 0 for d in apart)} of {len(apart)} log-likelihoods differ, by {max(apart):.1e} at most; "
            f"{greedy} greedy flags"
        )
        documents, differing = documents + len(values), differing + changed
        if exact and size == options.batch_size:
            good &= changed == 0 and max(apart) == 0 and mine.scores[task] == theirs.scores[task]
        elif options.float32:
            good &= max(apart) <= LIKELIHOOD
    print(f"  {differing} of {documents} outcomes differ")
    return good and (exact or differing <= OUTCOMES * documents)


def main() -> int:
    """Compare, in the checkpoint's precision or in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="decoder", choices=["decoder", "encoder-decoder"])
    parser.add_argument("--task", action="append", choices=CHOICES)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--stock-batch-size", type=int, action="append")
    parser.add_argument("--float32", action="store_true")
    parser.add_argument(
        "--random-t5", action="store_true", help="a small T5 with FOLDER's tokenizer in place of FOLDER"
    )
    options = parser.parse_args()
    options.task = options.task or ["piqa"]
    if options.random_t5:
        options.family = "encoder-decoder"
        with random_t5(options.folder) as made:
            return int(not compare(made, options))
    if not options.float32:
        return int(not compare(options.folder, options))
    with in_float32(options.folder, options.family) as copy:
        return int(not compare(copy, options))


if __name__ == "__main__":
    raise SystemExit(main())
