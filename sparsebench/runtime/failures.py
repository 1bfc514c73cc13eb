"""What an error raised while a model runs means: memory ran out, another rank is gone, or neither."""

from __future__ import annotations

from sparsebench.errors import out_of_memory, says

ECHOES = (
    "closed by peer", "reset by peer", "broken pipe", "connect failure", "connection refused", "recvvalue failed",
    "nccl communicator was aborted", "remote process exit",
)  # fmt: skip
"""How gloo, NCCL and torch's store report that another rank is gone."""


def on_gpu(error: BaseException) -> bool:
    """Return whether the memory that ran out is a GPU's."""
    return says(error, ("cuda", "hip out of memory"))


def echo(error: BaseException) -> bool:
    """Return whether the error only says that another rank has ended."""
    return isinstance(error, ConnectionError) or says(error, ECHOES)


def not_the_models(error: BaseException) -> bool:
    """Return whether an error raised while a model ran says nothing about the model or the engine."""
    return out_of_memory(error) or echo(error)
