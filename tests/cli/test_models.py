"""``sparsebench models``: every alias, for people and for scripts."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from sparsebench.cli.app import app
from sparsebench.sources import KNOWN


def test_models_are_listed() -> None:
    table = CliRunner().invoke(app, ["models"]).stdout
    assert [row.partition("\t")[0] for row in table.splitlines()[1:]] == list(KNOWN)
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert [(row["alias"], row["source"]) for row in rows] == [(name, known.source) for name, known in KNOWN.items()]
