"""Scores a model with sparsebench and with stock lm-eval on the same documents, and compares every number.

    python benchmarks/stock_lm_eval.py FOLDER --task piqa --limit 50 [--batch-size N] [--stock-batch-size N] [--float32]

Without a batch size sparsebench shares the beginnings of inputs and is compared with stock at 16: at most 0.2% of the
outcomes may differ, and in float32 no log-likelihood by more than 1e-3. With one, sparsebench takes stock's batches, and
nothing may differ when stock has the same. Exits with 1 when more differs than may.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoreResult, TaskSpec
from sparsebench.benchmarks.catalog import definition
from sparsebench.benchmarks.index import tasks_folder
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import Family

STOCK_BATCH_SIZE = 16
OUTCOMES = 0.002
"""The share of outcomes that may differ when beginnings are shared."""
LIKELIHOOD = 1e-3
"""How far log-likelihoods may then lie apart in float32."""

Answers = dict[tuple[str, str], tuple[float, bool]]
"""(log-likelihood, whether greedy decoding gives it) of every (context, continuation)."""


def ours(folder: Path, family: Family, spec: TaskSpec, cache: sources.Cache, batch_size: int | None) -> ScoreResult:
    """sparsebench's result."""
    found: list[ScoreResult] = []

    def emit(_: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            raise result
        found.append(result)

    benchmarks.score(folder, family, [spec], cache, emit, batch_size=batch_size)
    return found[0]


def stock(folder: Path, spec: TaskSpec, cache: sources.Cache, batch_size: int) -> dict[str, Any]:
    """lm-eval's own results for the stock task, with only the place of the data changed."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    ((split, source),) = definition(spec.task)["dataset_kwargs"]["data_files"].items()
    data = sources.fetch(sources.parse(source), cache)
    task = {
        "include": str(tasks_folder() / definition(spec.task)["include"]),
        "dataset_path": "arrow",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str(data)}},
        "training_split": None,
        "test_split": None,
    }
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "task.yaml").write_text(yaml.safe_dump(task))
        found = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "dtype": "auto", "device": "cpu"},
            batch_size=batch_size,
            tasks=[spec.task],
            limit=spec.limit,
            num_fewshot=spec.num_fewshot,
            task_manager=TaskManager(include_path=scratch, include_defaults=False),
        )
    assert found is not None
    return dict(found)


@contextmanager
def recorded() -> Iterator[tuple[Answers, list[float]]]:
    """All that lm-eval's Hugging Face model answers meanwhile, and the wall and CPU seconds that it takes to."""
    from lm_eval.models.huggingface import HFLM

    answers: Answers = {}
    seconds = [0.0, 0.0]
    loglikelihood = HFLM.loglikelihood

    def record(self: HFLM, requests: list[Any], *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        start = time.perf_counter(), time.process_time()
        found: list[tuple[float, bool]] = loglikelihood(self, requests, *args, **kwargs)
        seconds[:] = time.perf_counter() - start[0], time.process_time() - start[1]
        answers.update(zip((request.args for request in requests), found, strict=True))
        return found

    HFLM.loglikelihood = record
    try:
        yield answers, seconds
    finally:
        HFLM.loglikelihood = loglikelihood


@contextmanager
def in_float32(folder: Path, family: Family) -> Iterator[Path]:
    """A copy of the model in float32."""
    from sparsebench.models.load import load_model, load_tokenizer

    with tempfile.TemporaryDirectory() as copy:
        load_model(folder, family, "float32").save_pretrained(copy)
        load_tokenizer(folder).save_pretrained(copy)
        yield Path(copy)


def compare(folder: Path, options: argparse.Namespace) -> bool:
    """Score twice, print both scores, the seconds and all differences; whether they are no more than may be."""
    spec = TaskSpec(options.task, options.limit, options.num_fewshot)
    cache = sources.Cache()
    stock_size = options.stock_batch_size or options.batch_size or STOCK_BATCH_SIZE
    with recorded() as (answers, spent):
        mine = ours(folder, options.family, spec, cache, options.batch_size)
    with recorded() as (known, stock_spent):
        theirs = stock(folder, spec, cache, stock_size)
    reported = theirs["results"][spec.task]
    samples = sorted(theirs["samples"][spec.task], key=lambda sample: sample["doc_id"])
    pairs = zip(mine.outcomes, samples, strict=True)
    differing = sum(outcome.value != sample[mine.metric] for outcome, sample in pairs)
    assert answers.keys() == known.keys()
    apart = [abs(answers[request][0] - likelihood) for request, (likelihood, _) in known.items()]
    greedy = sum(answers[request][1] != is_greedy for request, (_, is_greedy) in known.items())
    exact = options.batch_size is not None
    for name, score, stderr, (wall, cpu) in (
        ("sparsebench", mine.score, mine.stderr, spent),
        ("stock", reported[f"{mine.metric},none"], reported[f"{mine.metric}_stderr,none"], stock_spent),
    ):
        speed = f"{wall:.1f} s wall, {cpu:.1f} s CPU, {mine.n / cpu:.1f} documents per CPU second"
        print(f"{name:12} {mine.metric} {score!r} ± {stderr!r}  {speed}")
    sizes = f"batch size {options.batch_size}" if exact else f"prefix sharing {mine.protocol['prefix_sharing']}"
    print(f"{differing} of {mine.n} documents differ ({sizes}; stock: batch size {stock_size})")
    print(
        f"{sum(distance > 0 for distance in apart)} of {len(apart)} log-likelihoods differ, by {max(apart):.1e} at "
        f"most; {greedy} of the greedy flags"
    )
    if exact:
        return differing == 0 or stock_size != options.batch_size
    return differing <= OUTCOMES * mine.n and (not options.float32 or max(apart) <= LIKELIHOOD)


def main() -> int:
    """Compare, in the checkpoint's precision or in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="decoder", choices=["decoder", "encoder-decoder"])
    parser.add_argument("--task", default="piqa")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--stock-batch-size", type=int)
    parser.add_argument("--float32", action="store_true")
    options = parser.parse_args()
    if not options.float32:
        return int(not compare(options.folder, options))
    with in_float32(options.folder, options.family) as copy:
        return int(not compare(copy, options))


if __name__ == "__main__":
    raise SystemExit(main())
