"""Every option of every step has a published record."""

import io
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import zstandard

from sparsebench.steps.recover.settings import TrainingSettings
from sparsebench.steps.registry import kinds

ROOT = Path(__file__).parent.parent.parent


def recorded() -> set[str]:
    """The names of recorded steps, as ``prune: magnitude``, and the values of their settings by verb."""
    found: set[str] = set()
    for path in (ROOT / "ledger" / "published").glob("*.jsonl.zst"):
        with path.open("rb") as file:
            for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file)):
                place = re.search(r'"steps": ?(?=\[)', line)
                if place and '"kind": "plan"' not in line[:80]:
                    for step in json.JSONDecoder().raw_decode(line, place.end())[0]:
                        found.add(f"{step['verb']}: {step['name']}")
                        found |= {f"{step['verb']} {key}: {_word(value)}" for key, value in step["settings"].items()}
    return found


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _choices(kind: Any) -> Iterator[Any]:
    """The values that a setting of this type chooses among; none for numbers and texts."""
    if kind is bool:
        yield from (False, True)
    for part in typing.get_args(kind):
        yield from [part] if typing.get_origin(kind) is Literal else _choices(part)


def test_every_option_has_a_record() -> None:
    records, missing = recorded(), set()
    for verb, kind in kinds().items():
        for name, settings in kind.classes().items():
            if f"{verb}: {name}" not in records:
                missing.add(f"{verb}: {name}")
                continue
            for key, field in settings.model_fields.items():
                values = {_word(value) for value in _choices(field.annotation)} - {_word(field.default)}
                # What a training that prunes shares with `recover` has its number there.
                verbs = {verb, "recover"} if issubclass(settings, TrainingSettings) else {verb}
                unused = {value for value in values if not {f"{owner} {key}: {value}" for owner in verbs} & records}
                missing |= {f"{verb}: {name}, {key}: {value}" for value in unused}
    assert not missing
