"""Scores a model with sparsebench and with stock lm-eval on the same documents, and compares them document by document.

    python benchmarks/stock_lm_eval.py FOLDER --task piqa --limit 50 [--batch-size N] [--stock-batch-size N]

At one batch size every outcome is equal; across batch sizes bf16 rounds differently and a few differ. Exits with 1 when
outcomes differ at one batch size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoreResult, TaskSpec
from sparsebench.benchmarks.catalog import definition
from sparsebench.benchmarks.index import tasks_folder
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import Family


def ours(folder: Path, family: Family, spec: TaskSpec, cache: sources.Cache, batch_size: int) -> ScoreResult:
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


def main() -> int:
    """Print both scores, the seconds each took, and on how many documents they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="decoder", choices=["decoder", "encoder-decoder"])
    parser.add_argument("--task", default="piqa")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--num-fewshot", type=int)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--stock-batch-size", type=int)
    options = parser.parse_args()
    spec = TaskSpec(options.task, options.limit, options.num_fewshot)
    cache = sources.Cache()
    start = time.perf_counter()
    mine = ours(options.folder, options.family, spec, cache, options.batch_size)
    middle = time.perf_counter()
    stock_size = options.stock_batch_size or options.batch_size
    theirs = stock(options.folder, spec, cache, stock_size)
    end = time.perf_counter()
    reported = theirs["results"][spec.task]
    samples = sorted(theirs["samples"][spec.task], key=lambda sample: sample["doc_id"])
    pairs = zip(mine.outcomes, samples, strict=True)
    differing = sum(outcome.value != sample[mine.metric] for outcome, sample in pairs)
    print(f"sparsebench  {mine.metric} {mine.score!r} ± {mine.stderr!r}  {middle - start:.1f} s")
    print(
        f"stock        {mine.metric} {reported[f'{mine.metric},none']!r} ± {reported[f'{mine.metric}_stderr,none']!r}  "
        f"{end - middle:.1f} s"
    )
    print(f"{differing} of {mine.n} documents differ (batch sizes {options.batch_size} and {stock_size})")
    return int(differing > 0 and stock_size == options.batch_size)


if __name__ == "__main__":
    raise SystemExit(main())
