"""The table of steps. A step is one package (or module) and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.steps`` names a ``StepKind``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

from pydantic import Field, create_model

from sparsebench.errors import UserError
from sparsebench.manifest.recipes import verb_and_name
from sparsebench.manifest.schema import Strict, Swept
from sparsebench.plugins import table
from sparsebench.sources.reference import Reference
from sparsebench.steps import floor
from sparsebench.steps.contract import Settings, Step, StepKind
from sparsebench.steps.moefy import step as moefy
from sparsebench.steps.prune import registry as prune
from sparsebench.steps.quantize import step as quantize
from sparsebench.steps.recover import LIBRARIES
from sparsebench.steps.recover import step as recover
from sparsebench.steps.shrink import settings as shrink_settings
from sparsebench.steps.shrink import step as shrink
from sparsebench.steps.skip import step as skip
from sparsebench.steps.trim import step as trim

COLUMNS = ("sparsity", "granularity", "pattern", "allocation", "propagate")
"""Settings that have columns of their own in tables."""
_TAUGHT: Any = {"texts": {"source": ("field", "target")}, "fits": ("source",), "teachers": ("teacher",)}
"""The settings of steps that may train a whole model: the text to train on, and the teachers."""
BUILT_IN = (
    StepKind(
        "prune",
        prune.settings,
        "sparsebench.steps.prune.sweep:run",
        reads_text=prune.reads_text,
        on_device=lambda step: prune.reads_text(step) or prune.trained(step),
        forward_tokens=lambda step, text: recover.forward_tokens(step, text) if prune.trained(step) else 2.0 * text,
        bytes_per_parameter=lambda step: recover.bytes_per_parameter(step) if prune.trained(step) else 0.0,
        refuses=recover.refuses,
        reads_dense=prune.trained,
        draws=lambda step: step.name == "random" or prune.trained(step),
        shares=prune.shares,
        label=prune.label,
        version=lambda step: prune.methods()[step.name].version,
        extra_libraries=lambda step: prune.methods()[step.name].libraries,
        files=("file",),
        **_TAUGHT,
    ),
    StepKind(
        "quantize",
        quantize.settings,
        "sparsebench.steps.quantize.step:run",
        reads_text=quantize.reads_text,
        on_device=quantize.reads_text,
        shares=lambda step: step.settings["rounding"],
    ),
    StepKind(
        "shrink",
        shrink_settings.settings,
        "sparsebench.steps.shrink.step:run",
        reads_text=shrink.reads_text,
        on_device=shrink.trains,
        forward_tokens=lambda step, text: (recover if shrink.trains(step) else shrink).forward_tokens(step, text),
        bytes_per_parameter=lambda step: (recover if shrink.trains(step) else shrink).bytes_per_parameter(step),
        reads_dense=shrink.trains,
        draws=shrink.draws,
        label=shrink.label,
        version=shrink.version,
        extra_libraries=lambda step: LIBRARIES if shrink.trains(step) else ("transformers",),
        files=("file",),
        only_named=("taylor",),
        refuses=shrink.refuses,
        reshapes=lambda step: True,
        **_TAUGHT,
    ),
    StepKind(
        "trim",
        trim.settings,
        "sparsebench.steps.trim.step:run",
        label=trim.label,
        extra_libraries=lambda step: ("transformers", "tokenizers"),
        files=("file",),
        texts={"source": ("field", "target")},
    ),
    StepKind(
        "recover",
        recover.settings,
        "sparsebench.steps.recover.step:run",
        reads_text=lambda step: step.name == "reconstruct",
        on_device=lambda step: True,
        forward_tokens=recover.forward_tokens,
        bytes_per_parameter=recover.bytes_per_parameter,
        refuses=recover.refuses,
        reshapes=lambda step: bool(step.settings.get("student")),
        reads_dense=lambda step: True,
        draws=lambda step: True,
        label=recover.label,
        extra_libraries=lambda step: () if step.name == "reconstruct" else LIBRARIES,
        **_TAUGHT,
    ),
    StepKind(
        "skip",
        skip.settings,
        "sparsebench.steps.skip.step:run",
        reads_text=lambda step: True,
        on_device=lambda step: True,
        refuses=skip.refuses,
        shares=skip.shares,
        label=skip.label,
        last=True,
    ),
    StepKind(
        "moefy",
        moefy.settings,
        "sparsebench.steps.moefy.step:run",
        reads_text=moefy.reads_text,
        on_device=moefy.reads_text,
        draws=lambda step: True,
        refuses=moefy.refuses,
        refuses_shape=moefy.refuses_shape,
        shares=moefy.shares,
        label=moefy.label,
        extra_libraries=moefy.libraries,
        last=True,
        but=(("recover", "reconstruct"),),
        ends=moefy.ends,
    ),
    StepKind("floor", floor.settings, "sparsebench.steps.floor:run", stages=("benchmarks",), ends=floor.ends),
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
        return kinds()[step.verb].describe(step)
    return " ".join([step.verb, step.name, *(f"{key}={value}" for key, value in step.settings.items())])


def fitted_to(step: Step) -> list[tuple[Reference, tuple[str, ...]]]:
    """Return the texts that a step names and fits weights to, each with the columns that it reads."""
    kind = kinds()[step.verb]
    return [
        (
            Reference.parse(step.settings[key]),
            tuple(step.settings[one] for one in kind.texts[key] if step.settings.get(one)),
        )
        for key in kind.fits
        if step.settings.get(key)
    ]


def with_text(
    written: Mapping[str, Any], text: str | Mapping[str, Any], columns: Sequence[str | None]
) -> dict[str, Any]:
    """Return a written step with the source ``text`` where it reads one and names none, and with its ``columns``.

    These are the text's field and target. Columns that the step names itself stay. A step that reads only a text of its
    own (``only_named``) stays as it is.
    """
    verb, name = verb_and_name(written, kinds())
    kind, found = kinds()[verb], dict(written)
    for key, own in kind.texts.items() if name not in kind.only_named else ():
        if key in kind.settings()[name].model_fields and key not in written:
            usual = {column: its for column, its in zip(own, columns, strict=False) if its}
            found |= {key: text, **{one: its for one, its in usual.items() if written.get(one) is None}}
    return found


def closed_by(step: Step, behind: Sequence[tuple[str, str]]) -> str:
    """Return the key because of which steps ``behind``, each a verb and a name, may not follow ``step``; empty: they may.

    It is a setting of the step (``ends``), or its verb (``last``).
    """
    kind = kinds()[step.verb]
    if behind and (key := kind.ends(step)):
        return key
    return step.verb if kind.last and any(one not in kind.but for one in behind) else ""


def known(step: Step) -> bool:
    """Return whether a record's step is installed here, with all the settings that the record has.

    A setting that is no more counts where it has the value that every step has now (``Settings.former``).
    """
    kind = kinds().get(step.verb)
    settings = kind.settings().get(step.name) if kind else None
    if settings is None:
        return False
    former = {key: value for key, value in step.settings.items() if key not in settings.model_fields}
    return former.items() <= settings.former.items()


def details(step: Step) -> list[str]:
    """Return the settings of a step that differ from the defaults and have no column in tables: ``damping=0.1``.

    A text, a file or a teacher appears by its name; the usual text is left out.
    """
    if not known(step):
        return [f"{key}={value}" for key, value in step.settings.items() if key not in COLUMNS]
    kind = kinds()[step.verb]
    columns = {column for named in kind.texts.values() for column in named}

    def said(key: str, value: Any) -> str:
        if key in kind.files:
            return Reference.parse(value).name
        if key in kind.texts:
            return recover.text_name(value)
        if key in kind.teachers:
            return recover.taught(step.settings)
        return f"{key}={value}"

    told = {key: value for key, value in kind.unusual(step).items() if key not in COLUMNS and key not in columns}
    return [*filter(None, (said(key, value) for key, value in told.items()))]


@cache
def sweepable(settings: type[Settings]) -> type[Strict]:
    """Return the settings class as a manifest may write it: every field optional, and a value or a list of values."""
    fields: dict[str, Any] = {}
    for name, own in settings.model_fields.items():
        said = Field(None, description=own.description, json_schema_extra={"default": own.default})
        fields[name] = (Swept[own.rebuild_annotation()] | None, said)  # type: ignore[misc]
    model: type[Strict] = create_model(settings.__name__, __base__=Strict, __doc__=settings.__doc__, **fields)
    return model


def combinations(verb: str, name: str, given: Mapping[str, Any]) -> Iterator[Step]:
    """Yield the steps that a manifest's step asks for: every combination of its lists' values, resolved, each once.

    Raises pydantic's ValidationError for a value of the wrong kind, PydanticCustomError for values that contradict each
    other.
    """
    settings = kinds()[verb].settings()[name]
    read = sweepable(settings).model_validate(given)
    # The order of the fields is fixed; that of the set changes from run to run.
    written = [key for key in type(read).model_fields if key in read.model_fields_set]
    lists = {key: getattr(read, key) for key in written if getattr(read, key) is not None}
    found: dict[str, Step] = {}
    for fields in settings.alternatives(lists) or [lists]:
        for values in product(*fields.values()):
            resolved = settings.model_validate(dict(zip(fields, values, strict=True))).complete(name)
            found.setdefault(repr(resolved), Step(verb, name, resolved))
    yield from found.values()


def single(verb: str, name: str, **given: Any) -> Step:
    """Return one step from its settings, defaults filled in. Raises UserError for an unknown verb or name."""
    if verb not in kinds() or name not in kinds()[verb].settings():
        raise UserError(f"there is no step {verb}: {name}", "see docs/reference/manifest.md")
    (step,) = combinations(verb, name, given)
    return step
