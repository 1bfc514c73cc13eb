"""``recover`` as a step of a recipe: what a manifest may say of it, and the pass that makes what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.manifest.schema import Count, wrong
from sparsebench.steps.contract import Context, Emit, Settings, Step


class Reconstruct(Settings):
    """Block by block, each trained on calibration text to give what the dense model's block gives. Zeros stay zeros."""

    train: Literal["weights", "low_rank", "norms"] = "weights"
    """All `weights` of the block; or a product of `rank` that is added to what stays of each matrix, beside norms and biases
    (`low_rank`); or `norms` and biases alone."""
    rank: Count = 16
    """With `low_rank`: columns of the one factor, rows of the other."""
    epochs: Count = 5
    """How often each block reads the text; the best of them stays, by windows that are held out, or none of them."""
    batch: Count = 4
    """Samples of text in each step."""
    rate: float = 5e-4
    """The learning rate (Adam) of the first step; it falls to 0 in a line."""
    held_out: float = 0.125
    """The share of the text that is not trained on."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at."""
        if not 0 < self.rate < 1:
            raise wrong(f"a rate of {self.rate:g}", "a learning rate between 0 and 1, such as 5e-4", at="rate")
        if not 0 < self.held_out < 1:
            raise wrong(f"held_out is {self.held_out:g}", "a share between 0 and 1, such as 0.125", at="held_out")
        found = self.model_dump()
        return found if self.train == "low_rank" else {key: value for key, value in found.items() if key != "rank"}


def settings() -> dict[str, type[Settings]]:
    """Each way's settings, by its name."""
    return {"reconstruct": Reconstruct}


def passes(step: Step) -> float:
    """A forward and a backward pass, of about twice the work, an epoch; the dense block's, and those before and behind."""
    return float(3 * step.settings["epochs"] + 3)


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every recovered model of one pass, each into its folder.

    Raises ModelError for a quantized parent, UnsupportedError where its blocks or its tokens are not the dense model's.
    """
    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.quantized import FLOAT, encoding_of
    from sparsebench.steps.recover.reconstruct import Reconstruction

    if context.dense is None or context.read is None:
        raise ModelError("recover: reconstruct needs the dense model and calibration text", "use it in a manifest")
    checkpoint, dense = Checkpoint(parent), Checkpoint(context.dense)
    if encoding_of(checkpoint.config) != FLOAT:
        raise ModelError(f"{parent}: its weights are quantized", "recover first, then quantize")
    if _vocabulary(checkpoint) != _vocabulary(dense):
        raise UnsupportedError("the vocabulary is not the dense model's", "recover first, then trim")
    text = context.read()
    for number, (step, folder) in enumerate(targets.items()):
        try:
            job = Reconstruction(dense, checkpoint, text, step, context, (number, len(targets)))
            emit(step, job.run(folder))
        except SparsebenchError as error:
            emit(step, error)


def _vocabulary(checkpoint: Any) -> Any:
    return checkpoint.config.get("vocab_size")
