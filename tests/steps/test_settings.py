"""The settings of every step: what does not go together, labels and records, and what text, seed and training decide."""

import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from sparsebench.sources.reference import Reference
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.registry import combinations, details, fitted_to, known, label, recorded, single, with_text

FILE = str(Reference("units.json", "1" * 64))
OWN = {"source": "path:/b/a.txt"}
HALF = {"sparsity": 0.5}
TASK = {"keep": 0.5, "labels": "task", **OWN}
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("prune magnitude", {**HALF, "norm": 1}, "norm"),
    ("prune magnitude", {**HALF, "pattern": "rows", "granularity": "row"}, "granularity"),
    ("prune magnitude", {**HALF, "pattern": "rows", "granularity": "global"}, "granularity"),
    ("prune sparsegpt", {**HALF, "pattern": "columns"}, "pattern"),
    ("prune elsa", {}, "sparsity"),
    ("prune elsa", {"sparsity": 0.8, "penalty": 0.0}, "penalty"),
    ("prune elsa", {"pattern": "4x4"}, "pattern"),
    ("prune elsa", {"pattern": "2:4", "sparsity": 0.7}, "sparsity"),
    ("prune gradual", {}, "sparsity"),
    ("prune gradual", {"sparsity": 0.8, "initial": 0.9}, "initial"),
    ("prune gradual", {"sparsity": 0.8, "start": 0.9}, "start"),
    ("prune gradual", {"sparsity": 0.8, "pattern": "rows"}, "pattern"),
    ("prune gradual", {"sparsity": 0.8, "pattern": "2:4"}, "sparsity"),
    ("quantize int8", {"rounding": "up"}, "rounding"),
    ("quantize int8", {"group": 64}, "group"),
    ("quantize int4", {"group": 0}, "group"),
    ("quantize int8", {"damping": 0.0}, "damping"),
    ("quantize int4", {"scale": "search", "rounding": "gptq"}, "scale"),
    ("shrink l2", {}, "parameters"),
    ("shrink l2", {"parameters": 0.5, "keep": 0.5}, "parameters"),
    ("shrink l2", {"keep": 0.5, "compensation": "bias"}, "compensation"),
    ("shrink l2", {"keep": 0.5, "uneven": True, "multiple_of": 8}, "multiple_of"),
    ("shrink sleb", {}, "blocks"),
    ("shrink random", {"blocks": 1, "keep": 0.5}, "keep"),
    ("shrink random", {}, "parameters"),
    ("shrink l2", {"neurons": 24, "keep": 0.5}, "parameters"),
    ("shrink l2", {"neurons": 24, "of": "both"}, "of"),
    ("shrink l2", {"neurons": 24, "multiple_of": 8}, "multiple_of"),
    ("shrink random", {"blocks": 1, "heads": 2}, "heads"),
    ("shrink random", {"blocks": 1, "compensation": "least_squares"}, "compensation"),
    ("shrink random", {"blocks": 1, "of": "neurons"}, "of"),
    ("shrink random", {"blocks": 1, "file": FILE}, "file"),
    ("shrink list", {}, "file"),
    ("shrink taylor", {"experts": 2}, "of"),
    ("shrink taylor", {"keep": 0.5, "labels": "task"}, "labels"),
    ("shrink taylor", {"keep": 0.5, "source": "path:x"}, "source"),
    ("shrink l2", {"experts": 2, "heads": 2}, "experts"),
    ("shrink l2", {"experts": 2, "iterations": 2}, "iterations"),
    ("shrink reap", {"keep": 0.5, "compensation": "least_squares"}, "compensation"),
    ("shrink reap", {}, "parameters"),
    ("shrink reap", {"neurons": 16}, "neurons"),
    ("shrink reap", {"heads": 2}, "heads"),
    ("shrink gates", {}, "parameters"),
    ("shrink gates", {"parameters": 0.5, "keep": 0.5}, "parameters"),
    ("shrink gates", {"keep": 0.5, "alpha": 2.0}, "alpha"),
    ("shrink gates", {"keep": 0.5, "pattern": "2:4"}, "pattern"),
    ("shrink gates", {"keep": 0.5, "of": "experts"}, "of"),
    ("shrink gates", {"keep": 0.5, "neurons": 4}, "neurons"),
    ("shrink gates", {"keep": 0.5, "compensation": "bias"}, "compensation"),
    ("shrink gates", {"parameters": 1.0}, "parameters"),
    ("recover reconstruct", {"rate": 0.0}, "rate"),
    ("recover reconstruct", {"held_out": 1.0}, "held_out"),
    ("recover finetune", {"rate": 0.0}, "rate"),
    ("recover finetune", {"held_out": 1.0}, "held_out"),
    ("recover finetune", {"warm_up": 1.0}, "warm_up"),
    ("recover finetune", {"target": "x"}, "target"),
    ("recover distill", {"alpha": 1.1}, "alpha"),
    ("recover distill", {"temperature": 0.0}, "temperature"),
    ("recover distill", {"match": "fsp", "layers": "last"}, "layers"),
    ("recover distill", {"match": "nst", "layers": [[1, 2]]}, "layers"),
    ("recover distill", {"match": "attention_ce", "layers": [[1, 1], [0, 1]]}, "layers"),
    *(
        ("recover distill", {"student": student}, "student")
        for student in ({}, {"layers": [1, 0]}, {"layers": [0, 0]}, {"heads": 3, "key_heads": 2})
    ),
    ("moefy kmeans", {}, "active"),
    ("moefy kmeans", {"active": 0.0}, "active"),
    ("moefy kmeans", {"active": 0.5, "shared": 2}, "shared"),
    ("moefy kmeans", {"active": 0.5, "partition": "metis"}, "partition"),
    ("skip cats", {}, "share"),
    ("skip cats", {"share": 1.0}, "share"),
    ("skip cats", {"share": 0.3, "allocation": "greedy"}, "allocation"),
]


@pytest.mark.parametrize(("step", "settings", "key"), WRONG)
def test_settings_that_do_not_go_together_are_named(step: str, settings: dict[str, Any], key: str) -> None:
    with pytest.raises((ValidationError, PydanticCustomError)) as error:
        single(*step.split(), **settings)
    details: Any = error.value.errors() if isinstance(error.value, ValidationError) else [{"ctx": error.value.context}]
    assert key in {place for detail in details for place in (detail.get("ctx", {}).get("at"), *detail.get("loc", ()))}


LABELS: list[tuple[str, dict[str, Any], str, bool, bool]] = [
    ("prune magnitude", {**HALF, "pattern": "rows"}, "magnitude/layer rows 50% norm=2", False, False),
    ("prune elsa", {"sparsity": 0.9}, "elsa 90% tokens=2000000", False, True),
    ("prune elsa", {"pattern": "2:4", "tokens": 7}, "elsa 2:4 50% tokens=7", False, True),
    ("prune elsa", {"sparsity": 0.9, **OWN}, "elsa 90% tokens=2000000 a.txt", False, True),
    ("prune gradual", {"sparsity": 0.8}, "gradual 80%", False, True),
    ("prune gradual", {"sparsity": 0.8, "tokens": 7, **OWN}, "gradual 80% a.txt tokens=7", False, True),
    ("prune gradual", {"pattern": "2:4", "tokens": 7}, "gradual 2:4 50% tokens=7", False, True),
    ("shrink sleb", {"blocks": 4}, "sleb -4 blocks", True, False),
    ("shrink random", {"blocks": 4}, "random -4 blocks", False, True),
    ("shrink flap", {"parameters": 0.8}, "flap/both to 0.8 of parameters", True, False),
    ("shrink taylor", {"keep": 0.5, "of": "neurons"}, "taylor/neurons to 0.5", True, True),
    ("shrink taylor", {"keep": 0.5, "labels": "text"}, "taylor/both to 0.5, labels=text", True, False),
    ("shrink taylor", {**TASK}, "taylor/both to 0.5, labels=task, a.txt", False, True),
    (
        "shrink taylor",
        {**TASK, "documents": 100, "label": "mood"},
        "taylor/both to 0.5, labels=task, a.txt, label=mood, documents=100",
        False,
        True,
    ),
    ("shrink l2", {"keep": 0.5}, "l2/both to 0.5", False, False),
    ("shrink l2", {"of": "experts", "keep": 0.5}, "l2/experts to 0.5", False, False),
    ("shrink l2", {"keep": 0.5, "iterations": 4}, "l2/both to 0.5, iterations=4", False, False),
    ("shrink l2", {"keep": 0.5, "file": FILE}, "l2/both to 0.5, units.json", False, False),
    ("shrink list", {"file": FILE}, "shrink units.json", False, False),
    ("shrink reap", {"experts": 6}, "reap/experts to 6", True, False),
    ("shrink l2", {"keep": 0.5, "compensation": "least_squares"}, "l2/both to 0.5, least squares", True, False),
    ("shrink gates", {"parameters": 0.8, **OWN}, "gates/both to 0.8 of parameters, tokens=1000000, a.txt", False, True),
    ("shrink gates", {"keep": 0.5, "of": "heads", "tokens": 7}, "gates/heads to 0.5, tokens=7", False, True),
    ("recover reconstruct", {}, "reconstruct", True, True),
    ("recover distill", {}, "distill", False, True),
    (
        "recover distill",
        {"student": {"layers": [0, 4], "hidden": 64}},
        "distill into layers=0,4 hidden=64",
        False,
        True,
    ),
    ("recover distill", {"qat": "int4", "group": 32}, "distill qat=int4 group=32", False, True),
    ("recover finetune", {"qat": "int8", "group": 32}, "finetune qat=int8", False, True),
    ("recover finetune", {"tokens": 5, "rate": 1e-3}, "finetune tokens=5 rate=0.001", False, True),
    ("recover finetune", {**OWN, "field": "f"}, "finetune a.txt", False, True),
    ("moefy kmeans", {"experts": 8, "active": 0.5}, "kmeans/representative 4 of 8 experts", False, True),
    ("skip teal", {"share": 0.4}, "teal 40% of inputs", True, False),
]


@pytest.mark.parametrize(("step", "settings", "words", "reads_text", "draws"), LABELS)
def test_labels_texts_and_seeds(step: str, settings: dict[str, Any], words: str, reads_text: bool, draws: bool) -> None:
    found = single(*step.split(), **settings)
    assert (label(found), found.settings.reads_text(), found.settings.draws()) == (words, reads_text, draws)


@pytest.mark.parametrize(
    ("step", "settings", "bytes_each"),
    [("prune elsa", {"sparsity": 0.9}, 32.0), ("shrink gates", {"parameters": 0.8}, 24.0)],
)
def test_a_training_costs_its_own_text_and_its_state(step: str, settings: dict[str, Any], bytes_each: float) -> None:
    own = single(*step.split(), **settings, **OWN, field="f")
    assert own.settings.on_device() and "accelerate" in own.settings.libraries()
    assert (own.settings.forward_tokens(0), own.settings.bytes_per_parameter()) == (3 * own.settings.tokens, bytes_each)
    assert fitted_to(own) == [(Reference("path:/b/a.txt"), ("f",))]


def test_a_tables_details_have_a_texts_name_and_none_of_the_usual_text() -> None:
    assert details(single("prune", "elsa", sparsity=0.9, **OWN)) == ["a.txt"]
    usual = single("prune", "elsa", sparsity=0.9, tokens=7, source=DEFAULT.source, field="passage")
    assert details(usual) == ["tokens=7"]
    assert not fitted_to(single("shrink", "l2", keep=0.5)) and not fitted_to(single("recover", "reconstruct"))


def test_a_pattern_fixes_the_sparsity_and_a_schedule_its_settings() -> None:
    late = single("prune", "gradual", sparsity=0.5, schedule="constant", start=0.8, initial=0.9).settings
    assert late.start == 0.8 and not {"end", "initial", "frequency"} & set(late.record())
    swept = combinations("prune", "gradual", {"pattern": ["2:4", "unstructured"], "sparsity": [0.5, 0.8]})
    assert sorted(map(label, swept)) == ["gradual 2:4 50%", "gradual 50%", "gradual 80%"]
    assert single("prune", "wanda", pattern="columns", sparsity=0.5).settings.granularity == "layer"


@pytest.mark.parametrize(
    ("written", "filled"),
    [
        ({"trim": "corpus"}, {"source": "path:usual", "field": "f", "target": "t"}),
        ({"trim": "corpus", "field": "own"}, {"source": "path:usual", "target": "t"}),
        ({"trim": "corpus", "source": "path:own"}, {}),
        ({"shrink": "taylor", "units": "neurons"}, {}),  # must name its text
    ],
)
def test_a_step_without_a_text_gets_the_usual_one(written: dict[str, Any], filled: dict[str, Any]) -> None:
    assert with_text(written, "path:usual", ("f", "t")) == written | filled


def test_a_record_with_a_setting_that_is_no_more_reads_as_before() -> None:
    planned = single("shrink", "l2", keep=0.5, compensation="least_squares")
    old = planned.record() | {"settings": planned.settings.record() | {"damping": 0.01}}
    assert recorded(old) == planned
    # With another value it is shown with all that it says.
    other = recorded(old | {"settings": planned.settings.record() | {"damping": 0.5}})
    assert not known(other) and "damping=0.5" in label(other) and "damping=0.5" in details(other)


def test_a_step_is_the_same_after_a_record_and_after_another_process() -> None:
    asked = {"student": {"layers": [0, 2]}, "teacher": ["dense", "path:/t"], "alpha": 0.5}
    for step in (single("prune", "wanda", pattern="2:4"), single("recover", "distill", **asked)):
        assert recorded(json.loads(json.dumps(step.record()))) == step == pickle.loads(pickle.dumps(step))


@pytest.mark.parametrize(
    ("step", "settings", "unused"),
    [
        ("quantize int8", {"damping": 0.5}, {"damping"}),
        ("recover finetune", {"group": 32}, {"qat", "group"}),
        ("recover distill", {"group": 32}, {"qat", "group", "layers", "alpha_schedule", "student"}),
        ("recover distill", {"qat": "int4"}, {"match_weight"}),
    ],
)
def test_settings_without_effect_are_not_recorded(step: str, settings: dict[str, Any], unused: set[str]) -> None:
    found = single(*step.split(), **settings)
    assert not unused & set(found.settings.record())
    assert "qat" in settings or found == single(*step.split())
