"""What an error raised while a model runs means: memory ran out, another rank is gone, or neither."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparsebench.errors import UnsupportedError, first_line, mentions, out_of_memory

ECHOES = (
    "closed by peer", "reset by peer", "broken pipe", "connect failure", "connection refused", "recvvalue failed",
    "nccl communicator was aborted", "remote process exit",
)  # fmt: skip
"""How gloo, NCCL and torch's store report that another rank is gone."""


def echo(error: BaseException) -> bool:
    """Return whether the error only says that another rank has ended."""
    return isinstance(error, ConnectionError) or mentions(error, ECHOES)


@contextmanager
def refused(what: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a library raises about a model into an UnsupportedError that begins with ``what``.

    These are AssertionError, RuntimeError, ValueError and the kinds in ``more``. That memory ran out, or that another
    rank is gone, says nothing about the model and stays as it is.
    """
    kinds: tuple[type[Exception], ...] = (AssertionError, RuntimeError, ValueError, *more)
    try:
        yield
    except kinds as error:
        if out_of_memory(error) or echo(error):
            raise
        raise UnsupportedError(f"{what}: {type(error).__name__}: {first_line(error)}") from error
