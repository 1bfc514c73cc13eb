"""The cases by name: a function builds an input in its box and yields the commands that are given it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from studies.hostile.sandbox import Box, Step

Build = Callable[[Box], Iterator[Step]]
CASES: dict[str, Build] = {}


def case(name: str, variants: Mapping[str, Any] | None = None) -> Callable[[Any], Any]:
    """Register a case, or one for each of ``variants``: its label goes behind the name, its value to the function."""

    def register(build: Callable[..., Iterator[Step]]) -> Callable[..., Iterator[Step]]:
        found: dict[str, Build] = {name: build}
        if variants is not None:
            found = {f"{name}, {label}": _with(build, value) for label, value in variants.items()}
        for label, one in found.items():
            if label in CASES:
                raise ValueError(f"two cases are called {label!r}")
            CASES[label] = one
        return build

    return register


def _with(build: Callable[..., Iterator[Step]], value: Any) -> Build:
    return lambda box: build(box, value)
