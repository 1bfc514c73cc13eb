"""Rows that other packages add to our tables of methods, engines and storage formats, by entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Protocol, TypeVar

from sparsebench.errors import UserError


class Named(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str:
        """What manifests and options call it."""


Entry = TypeVar("Entry", bound=Named)


def table(built_in: Iterable[Entry], kind: type[Entry], group: str) -> dict[str, Entry]:
    """Rows by name: the built-in ones, then those that the entry points of ``group`` name, which must be of ``kind``.

    Raises UserError for an entry point that cannot be imported or names something else.
    """
    found = {row.name: row for row in built_in}
    for entry in metadata.entry_points(group=group):
        try:
            row = entry.load()
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"the entry point {entry.name!r} in {group} cannot be loaded: {error}", _whose(entry)
            ) from error
        if not isinstance(row, kind):
            raise UserError(
                f"the entry point {entry.name!r} in {group} names a {type(row).__name__}, not a {kind.__name__}",
                _whose(entry),
            )
        found[row.name] = row
    return found


def _whose(entry: metadata.EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "its package"
    return f"mend or uninstall {package}, which says {entry.value}"
