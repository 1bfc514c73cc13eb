"""How much of a layer's output each method loses, layer by layer, on the dense model's inputs.

    python studies/layer_errors.py FOLDER [--sparsity 0.7] [--samples 16] [--length 512] [--blocks 30]

The error is ‖X(W − Ŵ)ᵀ‖² / ‖XWᵀ‖² over calibration tokens (the default text). Prints quartiles per method, and on how
many layers ALPS beats SparseGPT.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from sparsebench import sources
from sparsebench.errors import Interrupted, SparsebenchError
from sparsebench.manifest.schema import ManifestCalibration
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.plan.expand import with_defaults
from sparsebench.steps.calibration import tokens
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.registry import methods
from sparsebench.steps.zeroing import zeroed

METHODS = ("magnitude", "wanda", "ria", "sparsegpt", "alps")


def pruned(name: str, layer: Layer, sparsity: float) -> torch.Tensor:
    """The layer's weights after a method, compared as published."""
    method = methods()[name]
    quota = Quota(sparsity, method.granularities[0])
    if method.score:
        (choice,) = masks.choose(method.load_score()(layer), [quota], layer.name)
        return zeroed(layer.weights, choice.mask)
    ((solution,),) = method.load_solve()([layer], [quota])
    if isinstance(solution, SparsebenchError):
        raise solution
    return solution.weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=10**6)
    asked = parser.parse_args()
    calibration = with_defaults(ManifestCalibration(samples=asked.samples, length=asked.length), 0)
    read = tokens(asked.folder, "decoder", calibration, sources.Cache())
    errors: dict[str, list[float]] = {name: [] for name in METHODS}

    def visit(block: Block) -> None:
        if block.index >= asked.blocks:
            raise Interrupted("enough blocks")
        for name, inputs in block.observe(0, gram=True).items():
            gram = inputs.gram
            assert gram is not None
            weights = block.tensors[name]
            whole = float((weights.float() @ gram * weights.float()).sum())
            for method, found in errors.items():
                own = InputStatistics(inputs.tokens, inputs.squares, gram.clone())
                lost = weights.float() - pruned(method, Layer(name, weights, 0, own), asked.sparsity).float()
                found.append(float((lost @ gram * lost).sum()) / whole)
        print(block.index, *(f"{method} {found[-1]:.4f}" for method, found in errors.items()), flush=True)

    try:
        Replay(Checkpoint(asked.folder), "decoder", read.batch).run(visit)
    except Interrupted:
        pass
    for method, found in errors.items():
        quartiles = torch.tensor(found).quantile(torch.tensor([0.25, 0.5, 0.75]))
        print(
            f"{method:10} relative error, quartiles over {len(found)} layers:",
            *(f"{q:.4f}" for q in quartiles.tolist()),
        )
    wins = sum(a < s for a, s in zip(errors["alps"], errors["sparsegpt"], strict=True))
    print(f"ALPS below SparseGPT on {wins} of {len(errors['alps'])} layers at {asked.sparsity:.0%}")


if __name__ == "__main__":
    main()
