"""What a manifest may say: YAML without traps, every valid manifest read back as it was, the starter, the time."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.manifest.names import FAMILIES
from sparsebench.manifest.nodes import flow, read_yaml
from sparsebench.manifest.published import starter
from sparsebench.manifest.recipes import models_of
from sparsebench.manifest.schema import Manifest, pattern_sparsity
from sparsebench.plan.expand import recipes
from tests.manifest.loading import ENTRY, HEAD, load_text

SCALARS = {
    "1e-4": 1e-4, "1E3": 1e3, "-1.5e+2": -150.0, ".5": 0.5, "5.": 5.0, "-.inf": float("-inf"), "0.10": 0.1,
    "010": 10, "0o17": 15, "0x1F": 31, "-3": -3, "+3": 3, "true": True, "False": False, "~": None, "null": None,
    "": None, "no": "no", "on": "on", "yes": "yes", "Off": "Off", "y": "y", "1:10": "1:10", "2:4": "2:4",
    "1_000": "1_000", "2026-11-01": "2026-11-01", "'1e-4'": "1e-4", '"true"': "true", "1.2.3": "1.2.3", "0x": "0x",
    "hf:a/b@main": "hf:a/b@main", "wheel:a==1!b/#sha256=0": "wheel:a==1!b/#sha256=0", "!!str 5": "5",
    "!!float 5": 5.0, "<<": "<<", "9" * 400: float("inf"),
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_follow_yaml_1_2(text: str) -> None:
    data, _, problems = read_yaml(f"a: {text}", "m.yaml")
    assert problems == []
    assert data == {"a": SCALARS[text]}
    assert type(data["a"]) is type(SCALARS[text])


@pytest.mark.parametrize(("tag", "written"), [("null", "~"), ("bool", "true"), ("int", "5"), ("float", "0.5")])
def test_a_line_break_is_no_part_of_a_tagged_scalar(tag: str, written: str) -> None:
    _, _, (problem,) = read_yaml(f"a: !!{tag} |\n  {written}\n", "m.yaml")
    assert problem.message == f"`!{tag}` does not fit here"


def test_keys_are_text_and_patterns_need_no_quotes() -> None:
    assert read_yaml("{1: a, no: b, 1e3: c, ~: d}", "m.yaml")[0] == {"1": "a", "no": "b", "1e3": "c", "~": "d"}
    assert read_yaml("{'<<': {a: 1}}", "m.yaml")[0] == {"<<": {"a": 1}}
    assert read_yaml("[2:4, 1:10]", "m.yaml")[0] == ["2:4", "1:10"]
    assert read_yaml("a: &x [1]\nb: *x", "m.yaml")[0] == {"a": [1], "b": [1]}


def test_a_single_value_stands_for_a_list_of_one() -> None:
    text = (
        "version: 1\nmodels: [{name: m, source: 'wheel:a==1!b', family: encoder}]\n"
        "variants: [{prune: random, sparsity: 0.5, granularity: row, models: m}, {prune: random, pattern: 1:10}]\n"
        "benchmarks: {encoder: [{task: mrpc_pair, models: m}]}\n"
        "runtime: {ranks: 2, workloads: {batch: 4}, select: {sparsity: 0.5}}\n"
        "structure: {absolute: 1e-4}\nstorage: null\n"
    )
    manifest = load_text(text, "m.yaml").manifest
    assert manifest.models[0].source == "wheel:a==1!b"
    first, second = manifest.variants
    assert models_of(first) == ["m"]
    assert [step.settings.granularity for (step,) in recipes(first)] == ["row"]
    assert [(step.settings.pattern, step.settings.sparsity) for (step,) in recipes(second)] == [("1:10", 0.9)]
    assert manifest.benchmarks.of("encoder")[0].models == ["m"]
    assert [(one.ranks, one.workloads[0].batch) for one in manifest.runtime or []] == [([2], 4)]
    assert manifest.structure and manifest.structure.absolute == [1e-4] and manifest.storage is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"pattern": "2:4", "sparsity": 0.5}, {("2:4", 0.5)}),
        ({"pattern": ["unstructured", "2:4"], "sparsity": 0.7}, {("unstructured", 0.7), ("2:4", 0.5)}),
        ({"pattern": ["4x4", "1:10"], "sparsity": [0.7, 0.8]}, {("4x4", 0.7), ("4x4", 0.8), ("1:10", 0.9)}),
    ],
)
def test_a_pattern_fixes_its_own_sparsity(entry: dict[str, Any], expected: set[tuple[str, float]]) -> None:
    made = [step.settings for (step,) in recipes({"prune": "random", **entry})]
    assert {(settings.pattern, settings.sparsity) for settings in made} == expected


def test_a_list_is_a_chain_and_every_field_of_every_step_is_swept() -> None:
    chain = [
        {"prune": "magnitude", "sparsity": [0.5, 0.9], "granularity": ["layer", "row"], "models": ["m", "n"]},
        {"prune": "sparsegpt", "pattern": "2:4", "damping": [0.01, 0.1], "models": "m"},
    ]
    made = [*recipes(chain)]
    assert len(made) == len(set(map(repr, made))) == 8
    assert {tuple(step.name for step in steps) for steps in made} == {("magnitude", "sparsegpt")}
    assert models_of(chain) == ["m"]


def test_a_setting_that_is_null_is_left_out() -> None:
    text = ENTRY + "{trim: corpus, source: null}\n  - [{prune: random, sparsity: 0.5, models: ~}]\n"
    (trim, chain) = load_text(text, "m.yaml").manifest.variants
    assert (trim, chain) == ({"trim": "corpus"}, [{"prune": "random", "sparsity": 0.5}])


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=3)
# The program refuses NUL in any text, which no file name and no argument of a process can hold.
TEXTS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """The plain data of a valid manifest."""
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    model = {
        "source": st.sampled_from(["random", "hf:a/b@main"]),
        "family": st.sampled_from(FAMILIES),
        "architecture": st.dictionaries(TEXTS, JSON, max_size=3).map(lambda more: more | {"model_type": "new"}),
    }
    some = st.lists(st.sampled_from(names), min_size=1, max_size=2)
    sweep = {"prune": st.sampled_from(["random", "magnitude"]), "sparsity": SHARES}
    fixed = {"prune": st.just("random"), "pattern": st.sampled_from([["2:4"], ["1:10", "1:20"]])}
    entries = st.fixed_dictionaries(sweep, optional={"models": some}) | st.fixed_dictionaries(fixed)
    runtime = st.fixed_dictionaries(
        {"ranks": st.lists(st.integers(1, 8), min_size=1, max_size=2), "samples": st.integers(4, 99)},
        optional={"models": some},
    )
    whole = {
        "version": st.just(1),
        "models": st.just([{"name": name, **draw(st.fixed_dictionaries(model))} for name in names]),
        "variants": st.lists(entries, min_size=1, max_size=3),
    }
    more = {
        "seed": st.integers(0, 2**40),
        "name": NAMES,
        "structure": st.none(),
        "runtime": st.lists(runtime, min_size=1, max_size=2),
    }
    found: dict[str, Any] = draw(st.fixed_dictionaries(whole, optional=more))
    return found


@given(manifests())
def test_a_valid_manifest_round_trips(data: dict[str, Any]) -> None:
    # JSON is YAML that quotes all text; PyYAML would quote by the rules of 1.1, under which `1e5` is text already.
    loaded = load_text(json.dumps(data, indent=1), "m.yaml")
    assert loaded.manifest == Manifest.model_validate(data)
    assert loaded.manifest.model_dump(mode="json", by_alias=True, exclude_unset=True) == data
    assert loaded.positions.values.keys() >= {("models", 0, "name"), ("variants", 0, "prune")}


def test_names_and_places() -> None:
    loaded = load_text("\ufeff" + HEAD.replace("\n", "\r\n"), "some/lab.yaml")
    assert (loaded.name, str(loaded.folder)) == ("lab", "some")
    assert load_text(HEAD + "name: mine\n", "lab.yaml").name == "mine"


def test_the_starter_loads() -> None:
    manifest = load_text(starter(), "starter.yaml").manifest
    assert {model.family for model in manifest.models} == {"decoder", "encoder"}
    # What is commented out must be right as well.
    examples = re.sub(r"^( *)# (- \{|calibration:|  \w+: )", r"\1\2", starter(), flags=re.MULTILINE)
    whole = load_text(examples, "starter.yaml").manifest
    assert " ".join(entry["prune"] for entry in whole.variants) == "magnitude magnitude random wanda sparsegpt alps"
    assert whole.variants[5]["pattern"] == ["2:4", "4x4"]
    assert [task.task for task in whole.benchmarks.decoder] == ["piqa", "perplexity"]
    assert (whole.calibration.field, whole.calibration.samples, whole.calibration.length) == ("text", 128, 512)


def test_pattern_sparsity() -> None:
    assert [pattern_sparsity(text) for text in ("2:4", "1:10", "1:20", "1:100")] == [0.5, 0.9, 0.95, 0.99]
    for text in ("4:2", "2:2", "0:4", "2:4\n", "unstructured"):
        with pytest.raises(ValueError, match="N:M"):
            pattern_sparsity(text)


def test_loading_is_quick_and_light(tmp_path: Path) -> None:
    lines = "".join(f"      key_{number}: 1e-{number}\n" for number in range(100))
    family = "    family: encoder\n"
    text = starter().replace(family, f"{family}    architecture:\n      model_type: bert\n{lines}")
    times = []
    for _ in range(5):
        begin = time.process_time()
        load_text(text, "m.yaml")
        times.append(time.process_time() - begin)
    assert min(times) < 0.1
    (tmp_path / "m.yaml").write_text(starter())
    code = (
        "import sys; from pathlib import Path; from sparsebench.plan.checks import load;"
        "load(Path(sys.argv[1])); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "value", ["12e4", "0o17", "0x1F", "1:4", "null", "true", "1.5", "", "<<", 1e-5, 12e4, None, False]
)
def test_what_is_written_on_one_line_is_read_back(value: object) -> None:
    written = {"task": "classify", "columns": {"label": value, "text": [value, "b"]}}
    found, _, problems = read_yaml(flow(written), "m.yaml")
    assert found == written and repr(found) == repr(written) and not problems


@pytest.mark.parametrize("word", ["no", "on", "yes", "2020-01-01", "1_000", "étoiles"])
def test_a_word_that_yaml_1_2_has_no_other_reading_for_is_not_quoted(word: str) -> None:
    assert flow({"name": word}) == f"{{name: {word}}}"
