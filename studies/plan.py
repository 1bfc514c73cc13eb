"""How long planning takes: every list swept, every id computed, cells gathered into jobs.

python studies/plan.py [--cells 10000]
"""

from __future__ import annotations

import argparse
import time

from sparsebench.manifest.schema import Manifest
from sparsebench.plan.expand import expand
from sparsebench.plan.jobs import jobs

VARIANTS = 100
"""Variants of each model, with five cells each."""


def main() -> None:
    """Print cells, jobs and seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    models = [f"m{number}" for number in range(max(1, parser.parse_args().cells // (5 * VARIANTS)))]
    shares = [number / 100 for number in range(1, VARIANTS // 2 + 1)]
    manifest = Manifest.model_validate(
        {
            "version": 1,
            "models": [{"name": name, "source": f"path:{name}", "family": "decoder"} for name in models],
            "variants": [{"prune": "magnitude", "granularity": ["layer", "row"], "sparsity": shares}],
            "benchmarks": {"decoder": [{"task": "piqa"}, {"task": "arc_easy"}]},
        }
    )
    started = time.perf_counter()
    plan = expand(manifest, "plan", {name: f"revision of {name}" for name in models})
    expanded = time.perf_counter()
    found = jobs(plan, plan.cells, lambda variant: False)
    ended = time.perf_counter()
    print(f"{len(plan.cells):,} cells in {expanded - started:.2f} s, {len(found):,} jobs in {ended - expanded:.2f} s")


if __name__ == "__main__":
    main()
