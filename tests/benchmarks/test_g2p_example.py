"""examples/g2p: the training script goes on where it was interrupted; its model is what its card says."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from sparsebench import sources
from sparsebench.benchmarks import all_tasks
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from tests.benchmarks.conftest import run
from tests.benchmarks.test_generation import dictionary  # noqa: F401

FOLDER = Path(__file__).parents[2] / "examples" / "g2p"
CACHE = sources.Cache()
"""The user's own, read before a test is isolated."""


@pytest.fixture
def script(dictionary: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:  # noqa: F811
    """The training script with a tiny model and a dictionary of 200 words."""
    found = importlib.util.spec_from_file_location("g2p_train", FOLDER / "train.py")
    assert found and found.loader
    train = importlib.util.module_from_spec(found)
    found.loader.exec_module(train)
    small = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    for name, value in {"SHAPE": small, "BATCH": 100, "EVERY": 3, "WARMUP": 2}.items():
        monkeypatch.setattr(train, name, value)
    return train


def test_a_resumed_training_is_the_same(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = script.train(tmp_path / "whole", 12).state_dict()
    seen = []

    def interrupted(*given: object) -> torch.Tensor:
        seen.append(given)
        if len(seen) > 8:
            raise KeyboardInterrupt
        return original(*given)

    original = script.loss
    monkeypatch.setattr(script, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.train(tmp_path / "parts", 12)
    monkeypatch.setattr(script, "loss", original)
    parts = script.train(tmp_path / "parts", 12)
    assert all(torch.equal(parts.state_dict()[name], weights) for name, weights in whole.items())
    script.save(parts, tmp_path / "parts", "bfloat16")
    saved = load_model(tmp_path / "parts", "encoder-decoder")
    assert saved.dtype == torch.bfloat16
    tokenizer = load_tokenizer(tmp_path / "parts")
    assert tokenizer.convert_ids_to_tokens(tokenizer("o'b-c.")["input_ids"]) == ["<s>", *"o'b-c.", "</s>"]
    assert tokenizer.decode(tokenizer("AA B NG")["input_ids"], skip_special_tokens=True) == "AA B NG"


def test_the_model_in_the_repository_is_small_and_whole() -> None:
    folder = FOLDER / "model"
    assert (folder / "model.safetensors").stat().st_size < 12e6
    model = load_model(folder, "encoder-decoder")
    assert model.dtype == torch.bfloat16
    assert 2e6 < model.num_parameters() < 4e6
    assert len(load_tokenizer(folder)) == model.config.vocab_size
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] >= 28
    card = (folder / "README.md").read_text()
    for word in ("BSD", "Apache-2.0", "cmudict", "train.py", f"{all_tasks()['g2p'].n:,}"):
        assert word in card


@pytest.mark.long
def test_the_model_writes_as_well_as_its_card_says() -> None:
    card = (FOLDER / "model" / "README.md").read_text()
    stated = re.search(r"bfloat16, as saved[^|]*\| ([\d.]+)% \| ([\d.]+)%", card)
    assert stated
    per, wer = (float(number) / 100 for number in stated.groups())
    # Three standard errors of a sample of 1,500 words.
    for task, wanted, error in (("g2p_per", per, 0.012), ("g2p", 1 - wer, 0.037)):
        found = run(FOLDER / "model", "encoder-decoder", task, limit=1500, cache=CACHE)
        assert found.score == pytest.approx(wanted, abs=error)
