"""What an engine must do. It lives in a rank's process; its imports are heavy and happen in its methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Inputs


class Engine(Protocol):
    """Turns a plain Hugging Face model into one that runs.

    What it makes is called as the Hugging Face model is, has ``generate`` and ``get_encoder`` where the model has, and
    the model itself as ``module``.
    """

    kernel: str
    """The kernel that multiplies weights, as the report shall name it."""

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Raise UnsupportedError where it is known, before anything is loaded, that this cannot work."""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Import libraries and join the group; returns notes for the result."""

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Place ``model`` (a PreTrainedModel on the CPU, which this may take apart) for ``tokens`` tokens at most."""

    def parity(self, load: Callable[[], Any], family: str, prompt: Inputs) -> Parity | None:
        """Compare with the plain model, on what ``load`` returns; None where the engine is the plain model.

        Raises UnsupportedError when the engine's model does not run, MeasureError above the tolerance.
        """
