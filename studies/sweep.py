"""Prunes one model to several sparsities in one pass over its weights, as a run does for a manifest's sweep.

    python studies/sweep.py FOLDER OUT "prune: wanda, sparsity: [0.5, 0.9]" ["prune: sparsegpt, …"] [--family decoder]

Each variant is a folder of OUT named after its sparsity, such as 0.50, or its pattern, 2of4; of several methods, each has
a folder of its own.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import yaml

from sparsebench import processor
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import ManifestCalibration
from sparsebench.plan.expand import with_defaults
from sparsebench.plan.single import prepare_single
from sparsebench.sources import Cache
from sparsebench.steps.calibration import tokens
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.registry import combinations, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", nargs="+")
    parser.add_argument("--family", default="decoder")
    parser.add_argument("--calibration", default="{}", help="as in a manifest: {samples: 16, length: 512}")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    written = [yaml.safe_load(f"{{{step}}}") for step in asked.steps]
    steps = [step for one in written for step in combinations("prune", one.pop("prune"), one)]
    several = len({step.name for step in steps}) > 1
    folders = {step: (asked.out / step.name if several else asked.out) / name(step) for step in steps}
    text = with_defaults(ManifestCalibration.model_validate(yaml.safe_load(asked.calibration)), asked.seed)
    cache = Cache()
    model = prepare_single(f"path:{asked.folder}", asked.family, "auto", cache)
    read = partial(tokens, model.folder, model.family, text, cache)

    def emit(step: Step, result: StepReport | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            raise SystemExit(f"{step.name}: {result}")

    context = Context(model.family, asked.seed, processor.compute_dtype(model.dtype), read)
    kinds()["prune"].load()(model.folder, folders, context, emit)


def name(step: Step) -> str:
    """Name a variant's folder."""
    pattern = str(step.settings["pattern"])
    return pattern.replace(":", "of") if ":" in pattern else f"{step.settings['sparsity']:.2f}"


if __name__ == "__main__":
    main()
