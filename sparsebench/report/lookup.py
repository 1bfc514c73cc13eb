"""The queries behind a report's tables and pictures, by name: as SQL, and as the command that prints their rows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsebench.errors import UserError
from sparsebench.figures.spec import listing
from sparsebench.ledger import query
from sparsebench.manifest.problems import did_you_mean, one_of

FOLDER = Path(__file__).parent / "queries"
MANIFESTS_PLACEHOLDER = "/* manifests */"
"""What a query has in place of ``AND manifest IN (…)``: a comment, so that a file runs as it stands, unless it reads another."""
_OTHER_QUERY = re.compile(r"\{([a-z_]+)}")
"""What a query has in place of another, whose rows it reads: ``FROM {decision}``."""
FIGURE_PREFIX = "figures/"
"""What the name of a picture's query begins with: a table and a picture may share a name."""


def query_named(name: str, manifests: Sequence[str] = ()) -> str:
    """Return the SQL behind the table ``name``, limited to ``manifests``, or behind the picture ``figures/NAME``.

    Raises UserError for a name that is neither, and for a picture with ``manifests``: it covers all of them.
    """
    if name.startswith(FIGURE_PREFIX):
        by_name = {spec.name: spec.query for spec in listing()}
        if (figure := name.removeprefix(FIGURE_PREFIX)) in by_name:
            if manifests:
                raise UserError(f"--manifest does not limit {name}: a picture covers every manifest", "leave it out")
            return by_name[figure]
        raise UserError(f"--report: no figure {figure!r}", did_you_mean(figure, by_name) or one_of(list(by_name)))
    paths = {path.stem: path for path in sorted(FOLDER.glob("*.sql"))}
    if name not in paths:
        raise UserError(f"--report: no table {name!r}", did_you_mean(name, paths) or one_of(list(paths)))
    sql = paths[name].read_text(encoding="utf-8").strip()
    sql = _OTHER_QUERY.sub(lambda other: f"(\n{query_named(other[1], manifests)}\n)", sql)
    if not manifests:
        return sql.replace(f" {MANIFESTS_PLACEHOLDER}", "")
    names = ", ".join("'" + manifest.replace("'", "''") + "'" for manifest in manifests)
    return sql.replace(MANIFESTS_PLACEHOLDER, f"AND manifest IN ({names})")


def command_for(name: str, manifests: Sequence[str]) -> str:
    """Return the command that prints the rows behind a table or picture; a picture covers every manifest."""
    words = ["sparsebench", "sql", "--report", name]
    for manifest in () if name.startswith(FIGURE_PREFIX) else manifests:
        words += ["--manifest", manifest]
    return shlex.join(words)


def check_manifests(ledger: Path, run: Callable[[str], query.Table], manifests: Sequence[str]) -> None:
    """Raise UserError for a manifest that the ledger, which ``run`` asks, does not hold."""
    known_names = [name for (name,) in run(query_named("manifest_names")).rows]
    for name in manifests:
        if name not in known_names:
            hint = did_you_mean(name, known_names) or f"it holds {one_of(known_names) if known_names else 'none'}"
            raise UserError(f"{ledger}: no manifest {name!r} in this ledger", hint)
