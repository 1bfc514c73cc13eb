"""How often the latency protocol sees a difference that is not there, and misses one that is.

    python studies/honesty.py FOLDER --family encoder [--trials 200] [--processes 5] [--slowdown 0.05] [--out trials.jsonl]

A trial is three paired measurements of a model and a second copy of it: one for the noise floor, one as a comparison of equals,
and one in which the copy is slower (after each of its steps it spins for that share of the step's own time). Each has processes
of its own, which load both copies anew, and half as many more where `runtime.measure.processes_to_add` asks for them, as it does
in a run. A ledger then judges the trial by its view `latency`: each phase has its own floor (with one process the worst
phase's), and what did not settle decides nothing.

A slowdown that is not found is no fault where the row says so: where its `resolution` is above the slowdown, or its verdict is
`not steady`.

`--out` appends each trial to a file. The trials that are in it already count among `--trials` and are not run again, so that a
benchmark may be stopped and continued. What is printed at the end is of all trials of the file.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench import environment, records
from sparsebench.children import call_in_fork
from sparsebench.energy import EnergyMeter
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.manifest.schema import Manifest
from sparsebench.models.modules.build import meta_model
from sparsebench.models.modules.load import load_model
from sparsebench.plan.expand import expand
from sparsebench.runtime import intervals, measure, memory
from sparsebench.runtime.engines.hf import PlainModel
from sparsebench.runtime.latency import LoadedModel, PhaseTimer, RankSync
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.results import Setting, TimingSample, Workload
from sparsebench.runtime.workload import Phase, draw_prompt, phases

STAND_INS = {"floor": "dense", "equal": "magnitude", "slow": "random"}
"""The methods of the variants whose records a trial's measurements become."""


class Slower(Phase):
    """A phase whose every step takes longer by a share of its own time."""

    def __init__(self, inner: Phase, share: float) -> None:
        self.inner, self.share, self.name = inner, share, inner.name

    def begin(self) -> None:
        self.inner.begin()

    def step(self) -> None:
        started = time.perf_counter()
        self.inner.step()
        until = started + (time.perf_counter() - started) * (1 + self.share)
        while time.perf_counter() < until:
            pass

    def end(self) -> None:
        self.inner.end()


def loaded(folder: Path, family: str, setting: Setting) -> tuple[Any, list[Phase]]:
    """A fresh copy of the model and its phases; generating is prefill and decode again, and left out."""
    model = load_model(folder, family)  # type: ignore[arg-type]
    memory.copy_out(model)
    config = json.loads((folder / "config.json").read_text())
    made = phases(PlainModel(model), family, draw_prompt(config, setting.workload), setting.workload.generate)
    return model, [phase for phase in made if phase.name != "generate"]


def compared(folder: Path, family: str, setting: Setting, share: float) -> dict[str, Any]:
    """One paired measurement, as a record has it. Its processes are forks of this one, which has imported everything and
    calculated nothing."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "heard.jsonl"

        def timed(process: int) -> int:
            torch.set_num_threads(threads_per_rank(setting))
            memory.settle_allocator()
            gc.freeze()
            with torch.no_grad():  # not in inference mode: see memory.copy_out
                (one, dense), (other, variant) = (loaded(folder, family, setting) for _ in range(2))
                for model in (one, other):  # copied again, as ranks do
                    memory.copy_out(model)
            with torch.inference_mode():
                side = [Slower(phase, share) if share else phase for phase in variant]
                sides = {"dense": LoadedModel(dense, (1, 1)), "variant": LoadedModel(side, (1, 1))}
                peers, meter = RankSync(1, False), EnergyMeter("not asked for")
                samples, steady_phases, _ = PhaseTimer(setting, peers, lambda _: None, meter, process).time_phases(
                    sides
                )  # type: ignore[arg-type]
            with out.open("a") as file:
                file.write(
                    json.dumps({"samples": [asdict(sample) for sample in samples], "steady": steady_phases}) + "\n"
                )
            return 0

        def heard(processes: Iterable[int]) -> list[dict[str, Any]]:
            for process in processes:
                if call_in_fork(partial(timed, process), lambda _: None):
                    raise SystemExit(f"process {process} failed")
            return [json.loads(line) for line in out.read_text().splitlines()]

        said = heard(range(setting.processes))
        said = heard(measure.processes_to_add(taken(said), setting))
    steady_phases = Counter((phase, side) for one in said for phase, side in one["steady"])
    samples = taken(said)
    return {
        "engine": "hf", "ranks": 1, "kernel": "torch", "baseline": "paired",
        "phases": [asdict(one) for one in intervals.summaries(samples, steady_phases)],
        "differences": [asdict(one) for one in intervals.differences(samples, True)],
    }  # fmt: skip


def taken(said: Sequence[dict[str, Any]]) -> list[TimingSample]:
    """The samples of all processes."""
    return [TimingSample(**row) for one in said for row in one["samples"]]


def judged(trials: Sequence[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """The rows of the ledger's view ``latency`` for the equal and the slowed copy. Each trial is a model of its own."""
    names = [f"trial-{number}" for number in range(len(trials))]
    manifest = Manifest.model_validate({
        "version": 1,
        "models": [{"name": name, "source": f"path:{name}", "family": family, "dtype": "float32"} for name in names],
        "variants": [{"prune": STAND_INS[name], "sparsity": [0.5]} for name in ("equal", "slow")],
        "runtime": {"engines": ["hf"], "ranks": [1], "workloads": [{"prompt": 128, "generate": 16}]},
    })  # fmt: skip
    made = expand(manifest, "honesty", {name: name for name in names})
    cells = {(cell.variant.model, cell.variant.method): cell for cell in made.cells if cell.stage == "latency"}
    found = [
        records.make(cells[name, method], made.manifest, records.CellOutcome("done", trial[measurement]), "cpu")
        for name, trial in zip(names, trials, strict=True)
        for measurement, method in STAND_INS.items()
    ]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ledger.duckdb"
        Ledger(path).ingest(found)
        return query.run(path, "FROM latency WHERE verdict IS NOT NULL ORDER BY model, phase, method").dicts()


def counted(rows: Sequence[dict[str, Any]], setting: Setting, slowdown: float) -> dict[str, Counter[str]]:
    """Of each phase, in how many trials what was seen."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        count = counts.setdefault(row["phase"], Counter())
        differs = row["verdict"] in ("faster", "slower")
        excludes = row["speedup_low"] > 1 or row["speedup_high"] < 1
        if row["method"] == STAND_INS["equal"]:
            count["trials"] += 1
            count["noise floor above the slowdown"] += row["noise"] > slowdown
            count["equals called different"] += differs
            count["interval alone calls equals different"] += excludes
        else:
            hides = row["resolution"] > slowdown or row["verdict"] == "not steady"
            slower = row["verdict"] == "slower"
            count["slowdown found"] += slower
            count["its interval alone excludes 1"] += row["speedup_high"] < 1
            count["the row says that the slowdown would hide"] += hides
            count["found, of rows that do not say so"] += slower and not hides
        count["measurements with more processes"] += row["processes"] > setting.processes
        count["measurements not steady"] += row["verdict"] == "not steady"
    return counts


def read(path: Path, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials of a file, which must be of the same question."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for number, trial in enumerate(found, 1):
        if trial.get("asked") != asked:
            raise SystemExit(f"{path}:{number}: a trial of {trial.get('asked')}, not of {asked}; name another file")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", required=True)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    setting = Setting("hf", 1, Workload(), processes=given.processes)
    asked = {
        "model": given.folder.resolve().name, "family": given.family, "processes": given.processes,
        "slowdown": given.slowdown, "machine": environment.place("cpu")["id"],
    }  # fmt: skip
    trials = read(given.out, asked) if given.out else []
    meta_model(given.family, json.loads((given.folder / "config.json").read_text()))  # imports what each process needs
    for _ in range(given.trials - len(trials)):
        shares = {"floor": 0, "equal": 0, "slow": given.slowdown}
        trial = {name: compared(given.folder, given.family, setting, share) for name, share in shares.items()}
        trials.append({"asked": asked, **trial})
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(trials[-1]) + "\n")
    for name, count in counted(judged(trials, given.family), setting, given.slowdown).items():
        print(name, *(f"{what}: {number}" for what, number in count.items()), sep="; ")


if __name__ == "__main__":
    main()
