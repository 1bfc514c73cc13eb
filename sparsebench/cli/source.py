"""What a command is given: a model, and settings written as in a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from sparsebench import sources
from sparsebench.cli.output import note
from sparsebench.errors import SourceError, UserError
from sparsebench.manifest.names import Dtype
from sparsebench.manifest.nodes import read_yaml
from sparsebench.models.files import safety
from sparsebench.plan.single import SingleModel, prepare_single


def check_source(text: str) -> None:
    """Raise UserError where ``text`` names no model: it is no folder, no alias and no source."""
    if os.path.exists(text):  # False for a name that is too long, where `Path.exists` raises OSError
        return
    try:
        sources.parse(text)
    except SourceError as error:
        raise UserError(f"{text}: no such folder, and no source of a model", error.hint) from error


def open_model(
    source: str,
    family: str | None,
    dtype: Dtype,
    offline: bool,
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> SingleModel:
    """Prepare and return the model that a verb was given, and note which of its files are left out.

    ``check`` is that of ``prepare_single``.
    """
    check_source(source)
    model = prepare_single(source, family, dtype, sources.Cache(offline=offline), check)
    if left_out := safety.left_out_sentence(safety.left_out_files(model.folder)):
        note(f"{model.name}: {left_out}")
    return model


def parse_setting(name: str, text: str, example: str) -> Any:
    """Return what YAML says in braces, which may be left out. Raises UserError, with the example, for what is no YAML."""
    stripped = text.strip()
    data, _, problems = read_yaml(stripped if stripped[:1] in ("{", "[") else f"{{{stripped}}}", name)
    if problems:
        raise UserError(f"{name} {text}: {problems[0].message}", example)
    return data
