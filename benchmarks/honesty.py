"""How often the latency protocol sees a difference that is not there, and misses one that is.

    python benchmarks/honesty.py FOLDER --family encoder [--trials 200] [--processes 5] [--slowdown 0.05] [--out trials.jsonl]

In every trial fresh processes, as many as a setting has, load two copies of the model each and time them as a pair: for the noise
floor, as a comparison of equals, and with one side made slower: after each of its steps it spins for that share of the
step's own time. Each of the three has processes of its own, as ``run`` has it. The rule is the
ledger's: the interval of the paired ratio excludes 1, and the ratio exceeds the noise. A slowdown that is not found is no
fault where the row says that it would hide: where its `resolution`, the larger of noise and half the interval's width, is
above it.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from sparsebench.children import apart
from sparsebench.energy import NoMeter
from sparsebench.models.load import load_model
from sparsebench.runtime import intervals, latency, memory
from sparsebench.runtime.engines.hf import Plain
from sparsebench.runtime.latency import LoadedModel, Peers
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.results import PhaseDifference, Setting, TimingSample, Workload
from sparsebench.runtime.workload import Phase, inputs, phases


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
    config = json.loads((folder / "config.json").read_text())
    made = phases(Plain(model), family, inputs(config, setting.workload, 0, "cpu"), setting.workload.generate)
    return model, [phase for phase in made if phase.name != "generate"]


def compared(folder: Path, family: str, setting: Setting, share: float) -> dict[str, PhaseDifference]:
    """One paired measurement, its processes forks of this one, which has imported everything and calculated nothing."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "samples.jsonl"

        def timed(process: int) -> int:
            torch.set_num_threads(threads_per_rank(setting))
            memory.settle_allocator()
            with torch.inference_mode():
                (one, dense), (other, variant) = (loaded(folder, family, setting) for _ in range(2))
                for model in (one, other):
                    memory.own(model)
                side = [Slower(phase, share) if share else phase for phase in variant]
                sides = {"dense": LoadedModel(dense, (1, 1)), "variant": LoadedModel(side, (1, 1))}
                peers, meter = Peers(1, False), NoMeter("not asked for")
                samples, *_ = latency.run(sides, setting, peers, lambda: None, meter, process)  # type: ignore[arg-type]
            with out.open("a") as file:
                file.writelines(json.dumps(asdict(sample)) + "\n" for sample in samples)
            return 0

        for process in range(setting.processes):
            if apart(partial(timed, process), lambda _: None):
                raise SystemExit(f"process {process} failed")
        samples = [TimingSample(**json.loads(line)) for line in out.read_text().splitlines()]
    return {found.phase: found for found in intervals.differences(samples, True)}


def called(found: PhaseDifference, noise: float) -> bool:
    """Whether the ledger would call this a difference."""
    return (found.high < 1 or found.low > 1) and abs(math.log(found.ratio)) > noise


def noise_bound(found: PhaseDifference) -> float:
    """The ledger's macro of this name, of a model's comparison with itself."""
    n = found.processes if found.processes > 1 else max(found.pairs, 2)
    k = stats.nct.ppf(0.95, n - 1, stats.norm.ppf(0.95))
    return float(abs(math.log(found.ratio)) + k * math.log(found.high / found.low) / 2 / stats.t.ppf(0.975, n - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", required=True)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    setting = Setting("hf", 1, Workload(), processes=asked.processes)
    counts: dict[str, Counter[str]] = {}
    for trial in range(asked.trials):
        floor, equal, slow = (compared(asked.folder, asked.family, setting, share) for share in (0, 0, asked.slowdown))
        noise = max(map(noise_bound, floor.values()))
        for name in floor:
            count = counts.setdefault(name, Counter())
            count["trials"] += 1
            count["interval alone calls equals different"] += equal[name].high < 1 or equal[name].low > 1
            count["equals called different"] += called(equal[name], noise)
            count["slowdown found"] += called(slow[name], noise) and slow[name].ratio > 1
            count["its interval alone excludes 1"] += slow[name].low > 1
            hides = max(noise, math.log(slow[name].high / slow[name].low) / 2) > math.log1p(asked.slowdown)
            count["noise floor above the slowdown"] += noise > math.log1p(asked.slowdown)
            count["the row says that the slowdown would hide"] += hides
            count["found, of rows that do not say so"] += not hides and called(slow[name], noise)
            told = {"floor": vars(floor[name]), "equal": vars(equal[name]), "slow": vars(slow[name])}
            if asked.out:
                with asked.out.open("a") as file:
                    file.write(json.dumps({"trial": trial, "phase": name, "noise": noise, **told}) + "\n")
    for name, count in counts.items():
        print(name, *(f"{what}: {number}" for what, number in count.items()), sep="; ")


if __name__ == "__main__":
    main()
