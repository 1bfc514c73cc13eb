"""Several tasks on several variants: a sweep's scoring here, and stock lm-eval run once a variant.

    python studies/throughput.py FOLDER… [--task piqa …] [--limit 48] [--stock-batch-size 1 8 16 32]

Here one process scores every folder in turn, as the processes of a run share what they import; stock is a process a folder, as
its command line is. Stock's batch sizes are tried on the first folder; then every folder is scored at stock's default, 1, and at
the fastest of them. Seconds are wall time and CPU time of the processes, start included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

TASKS = ("piqa", "arc_easy", "hellaswag", "winogrande", "openbookqa")
DEFAULT = 1
"""lm-eval's batch size where nobody says."""


def ours(folders: Sequence[Path], tasks: Sequence[str], limit: int) -> None:
    """Score every folder in this process."""
    from sparsebench import benchmarks, sources
    from sparsebench.benchmarks import ScoredModel, TaskSpec
    from sparsebench.errors import SparsebenchError

    def emit(_: TaskSpec, result: object) -> None:
        if isinstance(result, SparsebenchError):
            raise result

    for folder in folders:
        benchmarks.score(
            ScoredModel(folder, "decoder"), [TaskSpec(task, limit) for task in tasks], sources.Cache(), emit
        )


def stock(folder: Path, tasks: Sequence[str], limit: int, size: int) -> None:
    """Score one folder as lm-eval does, with only the place of the data changed."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sparsebench import sources
    from sparsebench.benchmarks import all_tasks, index
    from sparsebench.benchmarks.contract import sampled

    with tempfile.TemporaryDirectory() as scratch:
        for task in tasks:
            index.write(task, sources.Cache(), Path(scratch))
        lm = HFLM(pretrained=str(folder), dtype="auto", device="cpu", batch_size=size)
        manager = TaskManager(include_path=scratch, include_defaults=False)
        samples = {task: sampled(all_tasks()[task].n, limit) for task in tasks}
        simple_evaluate(model=lm, tasks=list(tasks), samples=samples, task_manager=manager)


def spent(*words: str) -> tuple[float, float]:
    """Wall and CPU seconds of this program with these words, as a process of its own."""
    started, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, cpu


def told(name: str, seconds: tuple[float, float]) -> None:
    """A line of the answer."""
    print(f"{name:36} {seconds[0]:7.1f} s wall {seconds[1]:7.1f} s CPU", flush=True)


def main() -> None:
    """Time both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--task", action="append")
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--stock-batch-size", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--side", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    tasks = asked.task or TASKS
    if asked.side == "ours":
        return ours(asked.folders, tasks, asked.limit)
    if asked.side == "stock":
        return stock(asked.folders[0], tasks, asked.limit, asked.size)
    same = [word for task in tasks for word in ("--task", task)] + ["--limit", str(asked.limit)]
    first = str(asked.folders[0])
    tried = {
        size: spent(first, *same, "--side", "stock", "--size", str(size))
        for size in dict.fromkeys(asked.stock_batch_size)
    }
    for size, seconds in tried.items():
        told(f"stock, batch {size}, the first folder", seconds)
    best = min(tried, key=lambda size: tried[size][0])
    mine = spent(*map(str, asked.folders), *same, "--side", "ours")
    told(f"sparsebench, {len(asked.folders)} folders", mine)
    for size in dict.fromkeys([DEFAULT, best]):
        each = [spent(str(folder), *same, "--side", "stock", "--size", str(size)) for folder in asked.folders]
        whole = (sum(wall for wall, _ in each), sum(cpu for _, cpu in each))
        told(f"stock, batch {size}, {len(asked.folders)} folders", whole)
        print(
            f"  sparsebench is {whole[0] / mine[0]:.2f} times as fast by wall time, {whole[1] / mine[1]:.2f} by CPU time"
        )
    return None


if __name__ == "__main__":
    main()
