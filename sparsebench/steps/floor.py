"""``floor`` as a step: what a task scores without skill, by random or zero weights or without a model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sparsebench.errors import UnsupportedError
from sparsebench.steps.contract import Context, Emit, Settings, Step

HEURISTIC = "heuristic"
"""The floor without a model: no weights are made, and its scores depend on the tasks alone."""


class Zeros(Settings):
    """Every weight is zero."""


class RandomWeights(Settings):
    """Every weight is drawn as for a model before its training."""

    seed: int = 0
    """The seed that the weights are drawn from. Of several, the best score is the floor."""


class Heuristic(Settings):
    """No model: pairs and passages are ranked by shared words; the answer is the shortest, or the longest, choice.

    Other tasks have no heuristic and are left out.
    """

    def closing_key(self) -> str:
        """Return ``floor``: there are no weights for a further step to change."""
        return "floor"


def settings() -> dict[str, type[Settings]]:
    """Return each floor's settings class, by its name."""
    return {"random-weights": RandomWeights, "zero-weights": Zeros, HEURISTIC: Heuristic}


def make_floor(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Write each floor of the model in ``parent`` into its folder, in the parent's precision.

    Raises UnsupportedError for the one without a model.
    """
    import torch

    from sparsebench.models.files import precision
    from sparsebench.models.files.checkpoint import torch_dtype
    from sparsebench.models.files.quantized import open_checkpoint
    from sparsebench.models.files.writing import CheckpointWriter, lay_out
    from sparsebench.models.random_weights import write_random
    from sparsebench.models.shape.topology import parts, weight_tensors
    from sparsebench.steps.counting import step_report

    checkpoint = open_checkpoint(parent)
    for step, folder in targets.items():
        started = time.perf_counter()
        if step.name == HEURISTIC:
            raise UnsupportedError("floor: heuristic has no weights to write", "score it in a manifest")
        if step.name == "random-weights":
            config = checkpoint.config
            dtype = precision.resolve("auto", config, checkpoint.tensors)
            write_random(config, folder, context.family, dtype, step.settings.seed, companions_of=parent)
        else:
            layout = lay_out([(info.name, info.dtype, info.shape) for info in checkpoint.stored.values()])
            with CheckpointWriter(folder, layout, parent) as writer:
                for info in layout:
                    if info.name.endswith(".weight_shape"):  # of a quantized weight, whose scales become zero
                        writer.copy(info.name, checkpoint)
                    else:
                        writer.write(info.name, torch.zeros(info.shape, dtype=torch_dtype(info.dtype)))
                writer.close()
        report = step_report(folder, context.family, seconds=time.perf_counter() - started)
        if step.name == "zero-weights":
            # Embedding tables of zeros look tied in the written file, so the parent says which ones are.
            weights = weight_tensors(checkpoint, parts(checkpoint, context.family))
            size = sum(info.numel for info in weights.values())
            report = replace(report, parameters=size, total_zeros=size)
        emit(step, report)
