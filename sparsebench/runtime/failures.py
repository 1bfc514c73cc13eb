"""What an error raised while a model runs means: memory ran out, another rank is gone, or neither."""

from __future__ import annotations

MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", "out of memory")
"""How torch, its allocators and the system report that memory is exhausted."""
ECHOES = ("closed by peer", "reset by peer", "broken pipe", "connect failure", "connection refused", "recvvalue failed")
"""How gloo and torch's store report that another rank is gone."""


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the machine or on a GPU."""
    return isinstance(error, MemoryError) or _says(error, MEMORY)


def on_gpu(error: BaseException) -> bool:
    """Return whether the memory that ran out is a GPU's."""
    return _says(error, ("cuda", "hip out of memory"))


def echo(error: BaseException) -> bool:
    """Return whether the error only says that another rank has ended."""
    return isinstance(error, ConnectionError) or _says(error, ECHOES)


def not_the_models(error: BaseException) -> bool:
    """Return whether an error raised while a model ran says nothing about the model or the engine."""
    return out_of_memory(error) or echo(error)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in words)
