"""How often the latency protocol sees a difference that is not there, and misses one that is.

    python benchmarks/honesty.py FOLDER --family encoder [--trials 100] [--slowdown 0.05] [--out trials.jsonl]

In every trial two copies of the model are loaded anew and timed as a pair three times with the default settings: for the noise
floor, as a comparison of equals, and with one side made slower: after each of its steps it spins for that share of the
step's own time. Before each of the three both copies move to memory of their own, as ``run`` has it. The rule is the
ledger's: the interval of the paired ratio excludes 1, and the ratio exceeds the noise. A slowdown that is not found is no
fault where the row says that it would hide: where its `resolution`, the larger of noise and half the interval's width, is
above it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from sparsebench.models.load import load_model
from sparsebench.runtime import latency, machine, memory
from sparsebench.runtime.engines.hf import Plain
from sparsebench.runtime.latency import Loaded, Peers
from sparsebench.runtime.results import PhaseDifference, Setting, Workload
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


def compared(dense: list[Phase], variant: list[Phase], setting: Setting) -> dict[str, PhaseDifference]:
    """One paired measurement."""
    sides = {"dense": Loaded(dense, (0, 0)), "variant": Loaded(variant, (0, 0))}
    samples, *_ = latency.run(sides, setting, Peers(1, False), lambda: None, machine.Nothing("not asked for"))  # type: ignore[arg-type]
    return {found.phase: found for found in latency.differences(samples, True, 0)}


def called(found: PhaseDifference, noise: float) -> bool:
    """Whether the ledger would call this a difference."""
    return (found.high < 1 or found.low > 1) and abs(math.log(found.ratio)) > noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", required=True)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    setting = Setting("hf", 1, Workload())
    counts: dict[str, Counter[str]] = {}
    memory.settle_allocator()
    with torch.inference_mode():
        for trial in range(asked.trials):
            (one, dense), (other, variant) = (loaded(asked.folder, asked.family, setting) for _ in range(2))
            found = []
            for share in (0, 0, asked.slowdown):
                memory.own(one)
                memory.own(other)
                side = [Slower(phase, share) if share else phase for phase in variant]
                found.append(compared(dense, side, setting))
            floor, equal, slow = found
            noise = max(abs(math.log(end)) for found in floor.values() for end in (found.low, found.high))
            for name in floor:
                count = counts.setdefault(name, Counter())
                count["trials"] += 1
                count["interval alone calls equals different"] += equal[name].high < 1 or equal[name].low > 1
                count["equals called different"] += called(equal[name], noise)
                count["slowdown found"] += called(slow[name], noise) and slow[name].ratio > 1
                hides = max(noise, math.log(slow[name].high / slow[name].low) / 2) > math.log1p(asked.slowdown)
                count["noise floor above the slowdown"] += noise > math.log1p(asked.slowdown)
                count["the row says that the slowdown would hide"] += hides
                count["found, of rows that do not say so"] += not hides and called(slow[name], noise)
                row = {
                    "trial": trial,
                    "phase": name,
                    "noise": noise,
                    "equal": vars(equal[name]),
                    "slow": vars(slow[name]),
                }
                if asked.out:
                    with asked.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    for name, count in counts.items():
        print(name, *(f"{what}: {number}" for what, number in count.items()), sep="; ")


if __name__ == "__main__":
    main()
