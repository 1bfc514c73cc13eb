"""The outputs of a classification head, by name, and which of them a label of some data means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sparsebench.errors import ModelError


def head_outputs(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the head's outputs, in order; transformers' default is two outputs.

    Raises ModelError where config.json names them in a way that transformers cannot read.
    """
    try:
        names = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
        count = len(names) or int(config.get("num_labels") or 2)
    except (TypeError, ValueError, AttributeError) as error:
        hint = "`id2label` maps numbers from 0 to names"
        raise ModelError(f"config.json: its `id2label` or `num_labels` is not usable: {error}", hint) from error
    return [names.get(position, f"LABEL_{position}") for position in range(count)]


def choice_problem(config: Mapping[str, Any]) -> str | None:
    """Return why the head does not choose one class of several; None where it does."""
    if config.get("problem_type") == "multi_label_classification":
        return "its head gives several classes at once (`problem_type: multi_label_classification`)"
    if len(head_outputs(config)) < 2 or config.get("problem_type") == "regression":
        return "its head gives a number, not a class"
    return None


def class_numbers(outputs: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Return, for each label, the number of the output that it means: its name, or, where no name has digits, its number.

    Raises ModelError, naming the label and the outputs, for a label that is neither.
    """
    # With outputs such as "1 star" to "5 stars" a label 4 may mean "4 stars", which is the output 3.
    named_by_numbers = any(re.search(r"\d", name) for name in outputs if not re.fullmatch(r"LABEL_\d+", name))
    position_of = {name.strip().lower(): position for position, name in enumerate(outputs)}
    numbers = []
    for label in labels:
        number = position_of.get(label.strip().lower())
        if number is None and not named_by_numbers and label.strip().isdecimal() and int(label) < len(outputs):
            number = int(label)
        if number is None:
            raise ModelError(
                f"{label[:40]!r} is no output of the head, which has {', '.join(outputs[:8])}",
                "labels as config.json's `id2label` names them, or numbers from 0; or name the outputs in their order: `labels:` "
                "of the model in a manifest, --label on the command line",
            )
        numbers.append(number)
    return numbers
