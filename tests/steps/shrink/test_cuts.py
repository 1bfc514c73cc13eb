"""Cuts in several parts, and files that name what goes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UserError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.sources.reference import Reference
from sparsebench.steps.shrink import scores
from sparsebench.steps.shrink.whole import WholeModel
from tests.models.replaying import written
from tests.steps.shrink.making import refused, shrunk, text

DOWN = "model.layers.{}.mlp.down_proj.weight"


def stayed(before: Path, after: Path, tensor: str) -> list[int]:
    """Which columns of a matrix are left."""
    old, new = (Checkpoint(folder).load(tensor).T for folder in (before, after))
    return [number for number, column in enumerate(old) if any(torch.equal(column, one) for one in new)]


def named(path: Path, **what: Any) -> str:
    path.write_text(json.dumps(what))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("llama", "taylor", {"labels": "own"}),
        ("llama", "activation", {"compensation": "least_squares", "of": "both"}),
        ("t5", "taylor", {"labels": "text", "of": "both"}),
    ],
)
def test_cuts_in_turn_are_a_chain_of_steps(kind: str, name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    settings = {"of": "neurons", **settings}
    out, result = shrunk(folder, family, tmp_path / "out", name, keep=0.5, iterations=2, **settings)
    first, _ = shrunk(folder, family, tmp_path / "first", name, keep=0.75, **settings)
    second, _ = shrunk(first, family, tmp_path / "second", name, keep=2 / 3, **settings)
    once, _ = shrunk(folder, family, tmp_path / "once", name, keep=0.5, **settings)
    if settings.get("labels") != "own":
        assert all(torch.equal(tensor, Checkpoint(second).load(info.name)) for info, tensor in Checkpoint(out).items())
    same = [torch.equal(tensor, Checkpoint(once).load(info.name)) for info, tensor in Checkpoint(out).items()]
    assert not all(same), "a new score must matter"
    assert "24 of 48 neurons" in result.note
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "model", "once", "out", "second"]


def test_every_cut_of_experts_is_aligned_though_they_are_not(tmp_path: Path) -> None:
    folder, family = written("mixtral", tmp_path / "model", intermediate_size=100)
    out, result = shrunk(folder, family, tmp_path / "out", "l2", keep=0.5, of="neurons", iterations=2)
    assert "48 of 100 neurons" in result.note
    load_model(out, family)


def test_the_answers_of_later_cuts_are_the_whole_models(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    smaller, _ = shrunk(folder, family, tmp_path / "smaller", "l2", keep=0.5, of="neurons")
    whole, cut = (WholeModel.load(one, family, text(family).batch, "auto") for one in (folder, smaller))
    answers: scores.Answers = {}
    scores.taylor(whole, [], "own", 0, None, answers)
    drawn = {rows: tokens.clone() for rows, tokens in answers.items()}
    scores.taylor(cut, [], "own", 0, None, answers)
    assert answers and all(torch.equal(answers[rows], drawn[rows]) for rows in drawn)


@pytest.mark.parametrize("cuts", [1, 3])
def test_what_a_file_names_goes_or_stays(cuts: int, tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    free, _ = shrunk(folder, family, tmp_path / "free", "l2", keep=0.5, of="neurons")
    chosen = stayed(folder, free, DOWN.format(0))
    lost = [unit for unit in range(48) if unit not in chosen]
    file = named(tmp_path / "units.json", neurons={"0": {"go": chosen[:3], "stay": lost[:2]}})
    out, _ = shrunk(folder, family, tmp_path / "out", "l2", keep=0.5, of="neurons", file=str(file), iterations=cuts)
    left = set(stayed(folder, out, DOWN.format(0)))
    assert left & set(chosen[:3]) == set() and left >= set(lost[:2]) and len(left) == 24
    assert stayed(folder, out, DOWN.format(1)) == stayed(folder, free, DOWN.format(1))


def test_a_file_alone_decides(tmp_path: Path) -> None:
    folder, family = written("bart", tmp_path / "model")
    blocks = ("encoder.0", "encoder.1", "decoder.0", "decoder.1")
    said = {block: {"go": [number, 40]} for number, block in enumerate(blocks)}
    said["encoder.1"] = {"go": [], "stay": [unit for unit in range(48) if unit not in (1, 40)]}
    file = named(tmp_path / "units.json", neurons=said)
    out, _ = shrunk(folder, family, tmp_path / "out", "list", file=str(file))
    for number, block in enumerate(blocks):
        left = stayed(folder, out, f"model.{block.replace('.', '.layers.')}.fc2.weight")
        assert left == [unit for unit in range(48) if unit not in (number, 40)]
    load_model(out, family)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"neurons": {"0": {"go": [48]}}}, "`neurons`: `0`: `go`"),
        ({"neurons": {"0": {"go": [1], "stay": [1]}}}, "1 goes and stays"),
        ({"neurons": {"2": {"go": [1]}}}, "`2` is no block"),
        ({"neurones": {"0": {"go": [1]}}}, "`neurones`"),
        ({"neurons": {"0": {"went": [1]}}}, "`went`"),
        ({"neurons": {"1": {"go": list(range(30))}}}, "`1`: the file removes 30 elements"),
        ({"neurons": {"1": {"stay": list(range(30))}}}, "`1`: the file keeps 30 elements"),
        ({"neurons": {"1": {"go": list(range(48))}}}, "nothing would be left"),
        ({"heads": {"1": {"go": [0]}}}, "`1`: the file names these"),
        ({"neurons": [1]}, "not an object"),
        ({}, "nothing in it"),
        ({"neurons": {"0": {"go": []}}}, "nothing in it"),
        ([3, 17], "no object"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_place(what: Any, said: str, tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    file = tmp_path / "units.json"
    file.write_text(json.dumps(what))
    result = refused(folder, family, tmp_path / "out", "l2", keep=0.5, of="neurons", file=str(file))
    assert isinstance(result, UserError) and said in result.message and "units.json" in result.message and result.hint


def test_a_file_that_changed_or_went_is_refused(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    file = Path(named(tmp_path / "units.json", neurons={"0": {"go": [1]}}))
    for given in (str(Reference(str(file), "0" * 64)), str(tmp_path / "other.json")):
        result = refused(folder, family, tmp_path / "out", "list", file=given)
        assert isinstance(result, UserError) and ".json" in result.message
