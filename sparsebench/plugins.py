"""Rows that other packages add to our tables (methods, steps, benchmarks, engines, storage formats and more), by entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from typing import Protocol, TypeVar

from sparsebench.errors import UserError


class Named(Protocol):
    """A row of a table."""

    @property
    def name(self) -> str:
        """Its name in manifests and options."""


Plugin = TypeVar("Plugin", bound=Named)


def table(built_in: Iterable[Plugin], row_type: type[Plugin], group: str) -> dict[str, Plugin]:
    """Return rows by name: the built-in ones, then those that entry points of ``group`` name, which must be ``row_type``.

    Raises UserError for an entry point that cannot be imported, names something else, or has a name that is taken.
    """
    rows = {row.name: row for row in built_in}
    owners = dict.fromkeys(rows, "sparsebench itself")
    for entry in metadata.entry_points(group=group):
        try:
            row = entry.load()
        except Exception as error:  # a stranger's module may raise anything
            raise UserError(
                f"the entry point {entry.name!r} in {group} cannot be loaded: {error}", _way_out(entry)
            ) from error
        if not isinstance(row, row_type):
            raise UserError(
                f"the entry point {entry.name!r} in {group} names a {type(row).__name__}, not a {row_type.__name__}",
                _way_out(entry),
            )
        if row.name in rows:
            raise UserError(
                f"{row.name!r} in {group} is there twice: {owners[row.name]} has it, and so has {_distribution_of(entry)}",
                f"rename it in {_distribution_of(entry)} ({entry.value}), or uninstall that package",
            )
        rows[row.name], owners[row.name] = row, _distribution_of(entry)
    return rows


def _way_out(entry: metadata.EntryPoint) -> str:
    return f"mend or uninstall {_distribution_of(entry)}, which says {entry.value}"


def _distribution_of(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else f"the package of entry point {entry.name!r}"
