"""Several teachers: the mean of what they say, each one's likeliest tokens kept, and tokenizers that must be the same."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.text import same_tokens
from sparsebench.models.modules.load import load_model
from sparsebench.steps.recover.reading import TrainingText
from sparsebench.steps.recover.resume import ResumeFolder
from sparsebench.steps.recover.teacher import DistillationLoss, layer_pairs
from sparsebench.steps.registry import combinations, label, single
from tests.models.replaying import batch, written
from tests.steps.recover.making import made, step

USUAL: dict[str, Any] = {"tokens": 1500, "batch": 4, "rate": 3e-3, "held_out": 0.2, "evaluations": 3, "top_k": 8}


def tokenizer(folder: Path, first: str = "a") -> None:
    """Ninety-six words, the first of them as told."""
    words = {first: 0, **{f"w{place}": place for place in range(1, 96)}}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w1"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def family_of_three(folder: Path) -> tuple[Path, Path, Path, Any]:
    """A student and two teachers of different widths, with one tokenizer."""
    found = []
    for seed, (name, width) in enumerate((("dense", 32), ("wide", 48), ("narrow", 16))):
        path, family = written("llama", folder / name, seed, hidden_size=width)
        tokenizer(path)
        found.append(path)
    return (*found, family)


@pytest.mark.parametrize("stored", [False, True])
def test_the_loss_is_the_divergence_from_the_mean_up_to_a_constant(stored: bool, tmp_path: Path) -> None:
    dense, wide, narrow, family = family_of_three(tmp_path)
    student, one, other = (load_model(path, family, "float32") for path in (narrow, dense, wide))
    text, rows = TrainingText(family, batch(family)), [0, 1, 3]
    # All 96 tokens, or so many as the likeliest.
    settings = step("distill", top_k=96 if stored else 0, temperature=2.0).settings
    loss = DistillationLoss(student, [] if stored else [one, other], family, text, settings, torch.device("cpu"))
    for number, teacher in enumerate((one, other)) if stored else ():
        kept = ResumeFolder(tmp_path / "kept")
        loss.store(teacher, kept, {"teacher": number}, range(text.samples))
    loss.prepare(0, 1)
    found = loss(rows, 0)
    found.backward()
    gradient = student.model.layers[0].mlp.up_proj.weight.grad.clone()
    student.zero_grad()
    given, mask = text.inputs(rows), text.mask(rows)
    with torch.no_grad():
        each = [torch.softmax(teacher(**given).logits / 2, -1)[mask] for teacher in (one, other)]
    mean = (each[0] + each[1]) / 2
    own = torch.log_softmax(student(**given).logits / 2, -1)[mask]
    divergence = (mean * (mean.log() - own)).sum(-1).mean()
    divergence.backward()
    assert torch.allclose(student.model.layers[0].mlp.up_proj.weight.grad, gradient, rtol=1e-3, atol=1e-6)
    # What the two differ by is how far the teachers are from their mean (Jensen and Shannon's divergence).
    apart = sum((one * (one.log() - mean.log())).sum(-1).mean() for one in each) / 2
    assert float(apart) > 0.01
    assert float(found.detach()) == pytest.approx(float((divergence + apart).detach()), rel=1e-4)


def test_two_teachers_teach_and_each_is_asked_once(tmp_path: Path) -> None:
    dense, wide, _, family = family_of_three(tmp_path)
    made(dense, family, tmp_path / "pruned", single("prune", "magnitude", sparsity=0.5), dense)
    fetched: list[str] = []

    def fetch(source: str) -> Path:
        fetched.append(source)
        return Path(source.removeprefix("path:"))

    (asked,) = combinations("recover", "distill", {**USUAL, "teacher": ["dense", f"path:{wide}#content=abc"]})
    alone = step("distill", top_k=8)
    found = made(tmp_path / "pruned", family, tmp_path / "out", asked, dense, fetch_file=fetch)
    assert fetched == [f"path:{wide}"]
    assert not any(path.stat().st_nlink > 1 for path in wide.iterdir()), "its owner may edit what is there"
    assert min(point.held_out for point in found.curve) < found.curve[0].held_out
    one = made(tmp_path / "pruned", family, tmp_path / "one", alone, dense)
    # Of both teachers all tokens once: two operations for each of their parameters.
    asking = 2 * sum(info.numel for info in Checkpoint(wide).tensors.values())
    tokens = (found.operations - one.operations) / asking
    assert tokens == round(tokens) and 0 < tokens <= 24 * 16
    assert label(asked).startswith("distill taught by dense and wide tokens=1500 ")
    assert Checkpoint(tmp_path / "out").config == Checkpoint(tmp_path / "pruned").config


def test_a_plain_list_is_one_setting_and_a_list_of_lists_is_swept() -> None:
    found = [one.settings.teacher for one in combinations("recover", "distill", {"teacher": ["dense", "path:/a"]})]
    assert found == [["dense", "path:/a"]]
    swept = combinations("recover", "distill", {"teacher": [["dense", "path:/a"], "dense"], "rate": [1e-4, 1e-3]})
    assert sorted(str(one.settings.teacher) for one in swept) == ["['dense', 'path:/a']"] * 2 + ["dense"] * 2
    (gradual,) = combinations("prune", "gradual", {"teacher": ["dense", "path:/a"], "sparsity": 0.5})
    assert gradual.settings.teacher == ["dense", "path:/a"]
    with pytest.raises(PydanticCustomError):
        list(combinations("recover", "distill", {"teacher": ["dense", "path:/a"], "match": "cos"}))
    (alone,) = combinations("recover", "distill", {"teacher": [["dense"]]})
    assert alone == single("recover", "distill"), "a list of one is that one"


def test_pairs_of_layers_are_one_setting_and_a_list_of_lists_is_swept() -> None:
    def asked(layers: Any) -> list[Any]:
        return [one.settings.layers for one in combinations("recover", "distill", {"match": "cos", "layers": layers})]

    assert asked([[1, 2], [2, 4]]) == [[[1, 2], [2, 4]]]
    assert asked([[1, 2]]) == [[[1, 2]]]
    assert asked([[[1, 2]], "last", [[1, 1], [2, 2]]]) == [[[1, 2]], "last", [[1, 1], [2, 2]]]
    with pytest.raises(PydanticCustomError, match="layers"):
        asked(["last", [1, 2]])


def test_another_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    dense, wide, _, family = family_of_three(tmp_path)
    tokenizer(wide, "b")
    asked = step("distill", teacher=f"path:{wide}")
    with pytest.raises(UnsupportedError, match="teacher wide: its tokenizer is not the model's"):
        made(dense, family, tmp_path / "out", asked, dense, fetch_file=lambda source: wide)
    large, _ = written("llama", tmp_path / "large", vocab_size=100)
    shutil.copy(dense / "tokenizer.json", large)
    asked = step("distill", teacher="path:large")
    with pytest.raises(UnsupportedError, match="it has 100 tokens, and the model 96"):
        made(dense, family, tmp_path / "out", asked, dense, fetch_file=lambda source: large)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gates", [False, True])
def test_a_trimmed_model_may_have_a_teacher_with_its_own_vocabulary(gates: bool, tmp_path: Path) -> None:
    trimmed, wide, _, family = family_of_three(tmp_path)
    dense, _ = written("llama", tmp_path / "whole", vocab_size=100)

    def asked(teacher: str) -> Any:
        if gates:
            return single("shrink", "gates", **USUAL, parameters=0.8, teacher=teacher)
        return step("distill", teacher=teacher)

    made(trimmed, family, tmp_path / "out", asked(f"path:{wide}"), dense, fetch_file=lambda source: wide)
    with pytest.raises(UnsupportedError):
        made(trimmed, family, tmp_path / "none", asked("dense"), dense)


def test_an_encoder_has_only_one_teacher(tmp_path: Path) -> None:
    dense, family = written("bert", tmp_path / "dense")
    tokenizer(dense)
    (asked,) = combinations("recover", "distill", {"teacher": ["dense", f"path:{dense}"], "tokens": 200})
    with pytest.raises(UnsupportedError, match="only one teacher"):
        made(dense, family, tmp_path / "out", asked, dense, fetch_file=lambda source: dense)


def _added(**options: bool) -> dict[str, Any]:
    return {"added_tokens": [{"content": "abab", "id": 3, **options}]}


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({"merges": ["a b"]}, {"merges": [["a", "b"]]}, {"merges": ["b a"]}),
        ({"merges": ["a b"]}, {"merges": ["a b"], "ignore_merges": False}, {"merges": ["a b"], "ignore_merges": True}),
        (_added(), _added(rstrip=False), _added(single_word=True)),
    ],
)
def test_what_changes_the_ids_tells_tokenizers_apart(one: Any, same: Any, other: Any, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "same", "other")]
    for folder, options in zip(folders, (one, same, other), strict=True):
        folder.mkdir()
        model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abab": 3}, **options}
        added = model.pop("added_tokens", [])
        (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    assert same_tokens(*folders[:2]) and same_tokens(folders[0], folders[2]) is False
    assert same_tokens(folders[0], tmp_path) is None


def test_a_much_shallower_teacher_is_compared_by_layers_that_it_has() -> None:
    assert layer_pairs(4, 2, "uniform", 1) == [(1, 1), (2, 1), (3, 2), (4, 2)], "attention begins with layer 1"
    assert layer_pairs(4, 2, "uniform")[0] == (1, 0), "states begin with what the first layer reads"
    assert layer_pairs(2, 4, "uniform", 1) == layer_pairs(2, 4, "uniform") == [(1, 2), (2, 4)]
