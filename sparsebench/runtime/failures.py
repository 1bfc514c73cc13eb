"""What an error in a rank means: out of memory, the echo of another rank's end, or neither. No imports of weight."""

from __future__ import annotations

MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", "out of memory")
"""How torch, its allocators and the system say it."""
ECHOES = ("closed by peer", "reset by peer", "broken pipe", "connect failure", "connection refused", "recvvalue failed")
"""How gloo and torch's store say that another rank is gone."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was wanting, whoever asked for it."""
    return isinstance(error, MemoryError) or _says(error, MEMORY)


def echo(error: BaseException) -> bool:
    """Whether it only says that another rank has ended."""
    return isinstance(error, ConnectionError) or _says(error, ECHOES)


def not_the_models(error: BaseException) -> bool:
    """Whether an error that came while a model ran says nothing about the model, or about the engine."""
    return out_of_memory(error) or echo(error)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in words)
