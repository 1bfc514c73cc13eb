"""How a problem is shown: its place, an excerpt of eighty columns, and a way out."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.manifest.problems import ManifestError, Problem
from sparsebench.plan.checks import families_against_configs, load
from tests.manifest.loading import ENTRY, HEAD, MODEL, load_text, problems_of


def test_what_a_person_sees() -> None:
    text = HEAD + "variants:\n  - {prune: magnitude, sparsity: [0.1, 50]}\n"
    assert str(problems_of(text, "lab.yaml")) == (
        "lab.yaml:5:40: variants[0].sparsity[1]\n"
        "  a share of 50\n"
        "  5 |   - {prune: magnitude, sparsity: [0.1, 50]}\n"
        "    |                                        ^^\n"
        "  expected: a share between 0 and 1\n"
        "  → did you mean 0.5?"
    )


def test_missing_files(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    path = tmp_path / "lab.yaml"
    path.write_text(
        MODEL
        + "{name: a, source: path:weights, family: decoder}\n"
        + "  - {name: b, source: path:wieghts, family: decoder}\n"
        + "  - {name: c, source: path:~nobody-at-all/x, family: decoder}\n"
    )
    with pytest.raises(ManifestError) as caught:
        load(path)
    found = caught.value.problems
    assert [(problem.line, problem.column, problem.message) for problem in found] == [
        (4, 23, "no such file or folder"),
        (5, 23, "no such file or folder"),
    ]
    assert found[0].hint == "did you mean `weights`?"
    with pytest.raises(ManifestError, match=r"no such file or directory\n  → did you mean `lab.yaml`\?"):
        load(tmp_path / "lba.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere")
    with pytest.raises(ManifestError) as caught:
        load(tmp_path / "link.yaml")
    assert "did you mean `link.yaml`" not in str(caught.value)
    with pytest.raises(ManifestError, match="is a directory"):
        load(tmp_path / "weights")
    path.write_bytes(b"version: 1 # \xff")
    with pytest.raises(ManifestError, match=r"not UTF-8 text \(byte 13\)"):
        load(path)


def test_family_against_config_json() -> None:
    loaded = load_text(HEAD + "  - {name: n, source: hf:a/n, family: encoder}\n", "m.yaml")
    configs = {"m": {"model_type": "bert"}, "n": {"model_type": "unheard-of"}}
    (problem,) = families_against_configs(loaded, configs)
    assert (problem.line, problem.column, problem.key, problem.expected) == (3, 39, "models[0].family", "`encoder`")
    assert "its config.json (model_type `bert`)" in problem.message
    assert not [*families_against_configs(loaded, {"m": {"model_type": "llama"}})]


def test_later_problems_find_their_place() -> None:
    loaded = load_text(HEAD, "m.yaml")
    problem = loaded.problem(("models", 0, "source"), "gone", "a model", "look elsewhere")
    assert (problem.path, problem.line, problem.column, problem.span) == ("m.yaml", 3, 23, 6)
    # A setting that is not written down is blamed on what would hold it.
    assert loaded.problem(("models", 0, "dtype"), "too wide").column == 5
    assert loaded.problem(("runtime", "ranks", 0), "too many").line == 1


def test_error_survives_a_process_boundary() -> None:
    error = problems_of("version: 3")
    copy = pickle.loads(pickle.dumps(error))
    assert copy.problems == error.problems
    assert str(copy) == str(error)


@given(
    st.text(st.sampled_from("-:[]{},'\"#&*!|>%@?~ \t\n\\ab1.é中\x07\u2028")), st.sampled_from(["", HEAD, ENTRY, MODEL])
)
def test_any_text_is_read_or_refused_in_eighty_columns(tail: str, head: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        load_text(head + tail, "m.yaml")
    except ManifestError as error:
        problems = error.problems
    assert problems or head in (HEAD, ENTRY)  # what a step may say is known where steps are, and not asked here
    for problem in problems:
        assert problem.line == 0 or problem.column <= len(problem.excerpt) + 1
        place, *rest = problem.render().split("\n")
        assert place.startswith("m.yaml")
        assert all(len(line) <= 80 for line in rest)


@given(st.text("x中\té", max_size=200), st.integers(1, 60), st.text("z中", max_size=100))
def test_the_carets_stand_under_the_value(before: str, length: int, after: str) -> None:
    error = problems_of(HEAD + f"structure: {{'{before}': 1, absolute: {'y' * length}}} # {after}")
    rendered = next(problem for problem in error.problems if "absolute" in problem.key).render().split("\n")
    excerpt, carets = rendered[2], rendered[3]
    cells = "".join(char * (2 if char == "中" else 1) for char in excerpt)
    assert len(cells) <= 80
    start = carets.index("^")
    under = cells[start : len(carets)]
    assert under == "y" * len(under)
    assert cells[start - 1] == " "
    assert len(under) == length or excerpt.endswith("y …")
