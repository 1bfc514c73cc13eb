"""The table of steps. A step is one package (or module) and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.steps`` names a ``StepKind``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

from pydantic import Field, ValidationError, create_model

from sparsebench.errors import UserError
from sparsebench.manifest.recipes import verb_and_name
from sparsebench.manifest.schema import Strict, Swept
from sparsebench.plugins import table
from sparsebench.sources.reference import Reference
from sparsebench.steps import floor
from sparsebench.steps.contract import GENERATED, Settings, Step, StepKind, UnknownSettings
from sparsebench.steps.moefy import settings as moefy
from sparsebench.steps.prune import registry as prune
from sparsebench.steps.quantize import settings as quantize
from sparsebench.steps.recover import settings as recover
from sparsebench.steps.shrink import gate_settings as shrink
from sparsebench.steps.skip import settings as skip
from sparsebench.steps.trim import settings as trim

COLUMNS = ("sparsity", "granularity", "pattern", "allocation", "propagate")
"""Settings that have columns of their own in tables."""
_STEPS = "sparsebench.steps"
BUILT_IN = (
    StepKind("prune", prune.settings, f"{_STEPS}.prune.sweep:make_pruned"),
    StepKind("quantize", quantize.settings, f"{_STEPS}.quantize.sweep:make_quantized"),
    StepKind("shrink", shrink.settings, f"{_STEPS}.shrink.step:make_smaller"),
    StepKind("trim", trim.settings, f"{_STEPS}.trim.step:make_trimmed"),
    StepKind("recover", recover.settings, f"{_STEPS}.recover.step:make_recovered"),
    StepKind("skip", skip.settings, f"{_STEPS}.skip.thresholds:make_skipping", terminal=True),
    StepKind(
        "moefy",
        moefy.settings,
        f"{_STEPS}.moefy.making:make_grouped",
        terminal=True,
        may_follow=(("recover", "reconstruct"),),
    ),
    StepKind("floor", floor.settings, f"{_STEPS}.floor:make_floor", stages=("benchmarks",)),
)


@cache
def kinds() -> dict[str, StepKind]:
    """Return every kind of step by its verb: the built-in ones, then those of installed plugins.

    Raises UserError for a plugin that cannot be used.
    """
    return table(BUILT_IN, StepKind, "sparsebench.steps")


def label(step: Step) -> str:
    """Return a step in few words, such as ``wanda/row 50%``; with all its settings if it is not installed here."""
    if known(step):
        return step.settings.describe()
    return " ".join([step.verb, step.name, *(f"{key}={value}" for key, value in step.settings.record().items())])


def fitted_to(step: Step) -> list[tuple[Reference, tuple[str, ...]]]:
    """Return the texts that a step names and fits weights to, each with the columns that it reads."""
    settings, texts = step.settings, list[tuple[Reference, tuple[str, ...]]]()
    for key in settings.fitted_keys:
        columns = (getattr(settings, column) for column in settings.text_keys[key])
        if text := getattr(settings, key, None):
            texts.append((Reference.parse(text), tuple(filter(None, columns))))
    return texts


def references(step: Step, keys: Sequence[str]) -> dict[str, list[Reference]]:
    """Return what a step names under those of ``keys`` that it has: files, texts or teachers."""
    named: dict[str, list[Reference]] = {}
    for key in keys:
        if value := getattr(step.settings, key, None):
            names = [value] if isinstance(value, str) else value
            named[key] = [Reference.parse(name) for name in names]
    return named


def with_text(
    written: Mapping[str, Any], text: str | Mapping[str, Any], columns: Sequence[str | None]
) -> dict[str, Any]:
    """Return a written step with the source ``text`` where it reads one and names none, and with its ``columns``.

    These are the text's field and target. Columns that the step names itself stay. A step that reads only a text of its
    own (``own_text_only``) stays as it is.
    """
    verb, name = verb_and_name(written, kinds())
    settings, filled = kinds()[verb].classes()[name], dict(written)
    if settings.own_text_only:
        return filled
    for key, column_keys in settings.text_keys.items():
        if key not in written:
            filled[key] = text
            for column_key, column in zip(column_keys, columns, strict=False):
                if column and written.get(column_key) is None:
                    filled[column_key] = column
    return filled


def closed_by(step: Step, later_steps: Sequence[tuple[str, str]]) -> str:
    """Return the key because of which ``later_steps``, each a verb and a name, may not follow ``step``; empty: they may.

    It is a setting of the step (``closing_key``), or its verb (``terminal``).
    """
    kind, key = kinds()[step.verb], step.settings.closing_key()
    if later_steps and key:
        return str(key)
    refused = any(later_step not in kind.may_follow for later_step in later_steps)
    return step.verb if kind.terminal and refused else ""


def known(step: Step) -> bool:
    """Return whether a record's step is installed here, with all the settings that the record has."""
    return not isinstance(step.settings, UnknownSettings)


def recorded(record: Mapping[str, Any]) -> Step:
    """Return the step of a record, with ``UnknownSettings`` where it is not installed here as it was made.

    A setting that is no more counts where it has the value that every step has now (``Settings.former``).
    """
    verb, name, written = record["verb"], record["name"], record["settings"]
    kind = kinds().get(verb)
    settings = kind.classes().get(name) if kind else None
    if settings is not None:
        former = {key: value for key, value in written.items() if key not in settings.model_fields}
        if former.items() <= settings.former.items():
            try:
                return Step(verb, name, settings(**{key: value for key, value in written.items() if key not in former}))
            except ValidationError:
                pass
    return Step(verb, name, UnknownSettings(**written))


def details(step: Step) -> list[str]:
    """Return the settings of a step that differ from the defaults and have no column in tables: ``damping=0.1``.

    A text, a file or a teacher appears by its name; the usual text is left out.
    """
    settings = step.settings
    if not known(step):
        return [f"{key}={value}" for key, value in settings.record().items() if key not in COLUMNS]
    text_columns = {column for columns in settings.text_keys.values() for column in columns}

    def words(key: str, value: Any) -> str:
        if key in settings.file_keys:
            return Reference.parse(value).name
        if key in settings.text_keys:
            return recover.text_name(value)
        if key in settings.teacher_keys:
            return recover.teacher_words(settings.teachers())
        return f"{key}={value}"

    changed = {key: value for key, value in settings.unusual().items() if key not in (*COLUMNS, *text_columns)}
    return [*filter(None, (words(key, value) for key, value in changed.items()))]


class _Generated(Strict):
    model_config = GENERATED


@cache
def sweepable(settings: type[Settings]) -> type[Strict]:
    """Return the settings class as a manifest may write it: every field optional, and a value or a list of values."""
    fields: dict[str, Any] = {}
    for name, field in settings.model_fields.items():
        optional = Field(None, description=field.description, json_schema_extra={"default": field.default})
        fields[name] = (Swept[field.rebuild_annotation()] | None, optional)  # type: ignore[misc]
    model: type[Strict] = create_model(settings.__name__, __base__=_Generated, __doc__=settings.__doc__, **fields)
    return model


def combinations(verb: str, name: str, swept: Mapping[str, Any]) -> Iterator[Step]:
    """Yield the steps that a manifest's step asks for: every combination of its lists' values, resolved, each once.

    Raises pydantic's ValidationError for a value of the wrong kind, PydanticCustomError for values that contradict each
    other.
    """
    settings = kinds()[verb].classes()[name]
    read = sweepable(settings).model_validate(swept)
    # The order of the fields is fixed; that of the set changes from run to run.
    written = [key for key in type(read).model_fields if key in read.model_fields_set]
    lists = {key: getattr(read, key) for key in written if getattr(read, key) is not None}
    steps: dict[str, Step] = {}
    for fields in settings.alternatives(lists) or [lists]:
        for values in product(*fields.values()):
            record = settings.model_validate(dict(zip(fields, values, strict=True))).completed().record()
            # From the record: settings without effect have their defaults, so that equal steps are equal.
            steps.setdefault(repr(record), Step(verb, name, settings.model_validate(record)))
    yield from steps.values()


def single(verb: str, name: str, **fields: Any) -> Step:
    """Return one step from its settings, defaults filled in. Raises UserError for an unknown verb or name."""
    if verb not in kinds() or name not in kinds()[verb].classes():
        raise UserError(f"there is no step {verb}: {name}", "see docs/reference/manifest.md")
    (step,) = combinations(verb, name, fields)
    return step
