"""Holds a dense model against itself under other batch sizes: how often does the ledger call the two different?

    python studies/false_alarms.py FOLDER --limit 50 [--task piqa …] [--batch-size 4 --batch-size 32]

Every task is scored in the fastest way and then in batches of each size. The scores differ only in how sums are rounded,
so a verdict other than "no difference detected" is a false alarm. Verdicts are the ledger's, once as they are and once after
Holm's correction over the tasks, as in `vs_dense`. Exits with 1 at a false alarm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec, all_tasks
from sparsebench.errors import SparsebenchError
from sparsebench.ledger.scored import compare
from sparsebench.ledger.statistics import holm_verdicts

USUAL = (
    "piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande", "openbookqa", "sciq", "copa", "cb", "rte", "mrpc", "sst2",
    "boolq", "lambada_openai",
)  # fmt: skip
NONE = "no difference detected"


def scored(folder: Path, family: str, specs: list[TaskSpec]) -> dict[TaskSpec, ScoreResult]:
    """Every task's result; an error ends the program."""
    found: dict[TaskSpec, ScoreResult] = {}

    def emit(spec: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            raise result
        found[spec] = result

    benchmarks.score(ScoredModel(folder, family), specs, sources.Cache(), emit)  # type: ignore[arg-type]
    return found


def main() -> int:
    """Score, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", default="decoder", choices=["decoder", "encoder", "encoder-decoder"])
    parser.add_argument("--task", action="append", choices=list(all_tasks()))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, action="append")
    options = parser.parse_args()
    tasks, sizes = options.task or USUAL, options.batch_size or [4, 32]
    dense = scored(options.folder, options.family, [TaskSpec(task, options.limit) for task in tasks])
    alarms = adjusted_alarms = differing = documents = 0
    for size in sizes:
        specs = [TaskSpec(task, options.limit, batch=size) for task in tasks]
        again = scored(options.folder, options.family, specs)
        found = []
        for spec in specs:
            one, other = again[spec], dense[TaskSpec(spec.task, spec.limit)]
            assert [outcome.doc_hash for outcome in one.outcomes] == [outcome.doc_hash for outcome in other.outcomes]
            found.append(compare(one, other))
        for spec, comparison, (_, adjusted) in zip(specs, found, holm_verdicts(found), strict=True):
            ((_, alone),) = holm_verdicts([comparison])
            pairs = zip(again[spec].outcomes, dense[TaskSpec(spec.task, spec.limit)].outcomes, strict=True)
            changed = sum(one.value != other.value for one, other in pairs)
            print(
                f"{spec.task:16} batch {size:3}  {changed} of {comparison.n} outcomes differ, "
                f"difference {comparison.difference:+.4f}, p {comparison.p:.3f}: {alone}",
                flush=True,
            )
            alarms, adjusted_alarms = alarms + (alone != NONE), adjusted_alarms + (adjusted != NONE)
            differing, documents = differing + changed, documents + comparison.n
    print(
        f"called different: {alarms} of {len(tasks) * len(sizes)}, after Holm {adjusted_alarms}; "
        f"{differing} of {documents} outcomes differ"
    )
    return int(alarms > 0)


if __name__ == "__main__":
    raise SystemExit(main())
