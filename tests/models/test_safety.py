"""What a model's folder could run code with: every loader is told not to, and what names code is left out or refused."""

import ast
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import sparsebench
from sparsebench.errors import ModelError
from sparsebench.models.files.families import transformers_config
from sparsebench.models.files.safety import copy_companion, copy_companions, without_code
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.build import meta_model
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.storage.archive import CODING
from sparsebench.storage.folders import store
from tests.models.model_zoo import small
from tests.models.replaying import rewrite
from tests.models.test_prepare import write_gguf

PACKAGE = Path(sparsebench.__file__).parent
LOADERS = {"from_pretrained", "from_config", "load_dataset", "CausalScorer", "HFLM"}
PLACES = {
    "from_pretrained": {"models/files/gguf.py", "models/files/text.py", "run/export.py"},
    "from_config": {"models/modules/build.py"},
}


def copied(folder: Path, out: Path, **keys: object) -> Path:
    """The model folder, with these keys in its config.json."""
    shutil.copytree(folder, out)
    rewrite(out / "config.json", **keys)
    return out


@cache
def calls() -> list[tuple[str, str, dict[str, Any]]]:
    """(file, name, constant keywords) of every call in the package."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                owner = getattr(getattr(node.func, "value", None), "id", "")
                keys = {key.arg or "": getattr(key.value, "value", None) for key in node.keywords}
                found.append((path.relative_to(PACKAGE).as_posix(), f"{owner}.{name}".lstrip("."), keys))
    return found


def test_every_loader_of_a_model_or_a_data_set_is_told_to_run_no_code() -> None:
    seen = [(file, name, keys) for file, name, keys in calls() if name.rsplit(".", 1)[-1] in LOADERS]
    scorers = [name for file, name, _ in seen if file == "benchmarks/harness.py"]
    assert scorers == ["CausalScorer"]
    assert len(seen) >= 6, "the check must see the calls"
    assert not [call for call in seen if call[2].get("trust_remote_code", True) is not False]
    assert not [call for call in seen if call[0] not in PLACES.get(call[1].rsplit(".", 1)[-1], {call[0]})]


def test_pickles_are_read_as_plain_weights_only() -> None:
    loads = [(file, keys) for file, name, keys in calls() if name == "torch.load"]
    assert loads and all(keys.get("weights_only") is True for _, keys in loads)


def test_keys_that_name_code_are_left_out_at_any_depth() -> None:
    inner = {"model_type": "bert", "auto_map": {"AutoModel": "org/name--evil.Evil"}, "attn_implementation": "sdpa"}
    config = {"model_type": "x", "encoder": inner, "_attn_implementation": {"": "eager", "vision": "org/kernel"}}
    kept, left = without_code({**config, "layers": [{"experts_implementation": "org/kernel"}, 3]})
    assert kept == {
        "model_type": "x",
        "encoder": {"model_type": "bert", "attn_implementation": "sdpa"},
        "layers": [{}, 3],
    }
    assert left == ["encoder.auto_map", "_attn_implementation", "layers.0.experts_implementation"]


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_no_kernel_is_fetched(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    from transformers.integrations import hub_kernels

    fetched: list[str] = []
    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda name, **_: fetched.append(name))
    folder = copied(tiny_bert, tmp_path / "model", **{key: "kernels-community/evil"})
    config = json.loads((folder / "config.json").read_text())
    meta_model("encoder", config)
    load_model(folder, "encoder")
    assert fetched == []


def test_a_choice_of_attention_that_names_no_kernel_is_kept() -> None:
    assert transformers_config(small("bert", attn_implementation="eager"))._attn_implementation == "eager"


def test_no_code_is_copied_with_a_folder(tmp_path: Path) -> None:
    inner = tmp_path / "0_Transformer" / "inner"
    inner.mkdir(parents=True)
    rewrite(inner.parent / "config.json", model_type="bert", auto_map={"AutoModel": "evil.Evil"})
    for name in ("evil.py", "vocab.txt"):
        (inner / name).write_text("x")
    left = copy_companion(inner.parent, tmp_path / "out")
    assert left == ["0_Transformer/config.json: auto_map", "0_Transformer/inner/evil.py"]
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"model_type": "bert"}
    assert [path.name for path in (tmp_path / "out" / "inner").iterdir()] == ["vocab.txt"]


def test_no_pickles_of_subfolders_and_no_checkpoints_of_a_trainer_are_copied(tiny_llama: Path, tmp_path: Path) -> None:
    folder = copied(tiny_llama, tmp_path / "model")
    for name in (
        "2_Dense/model.safetensors",
        "2_Dense/pytorch_model.BIN",
        "checkpoint-500/a.json",
        "checkpoint-x/a.pt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    (tmp_path / "copied").mkdir()
    assert copy_companions(folder, tmp_path / "copied") == ["2_Dense/pytorch_model.BIN", "checkpoint-x/a.pt"]
    store(folder, tmp_path / "stored", CODING)
    for out in (tmp_path / "copied", tmp_path / "stored"):
        assert [path.name for path in (out / "2_Dense").iterdir()] == ["model.safetensors"]
        assert not (out / "checkpoint-500").exists() and not list((out / "checkpoint-x").iterdir())


def test_an_adapter_is_refused_by_its_file(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copied(tiny_bert, tmp_path / "model")
    rewrite(folder / "adapter_config.json", base_model_name_or_path="org/other", peft_type="LORA")
    for attempt in (lambda: prepare(folder, tmp_path / "out", "encoder"), lambda: load_model(folder, "encoder")):
        with pytest.raises(ModelError, match=r"adapter_config\.json: .*org/other"):
            attempt()
    (folder / "config.json").unlink()  # an adapter alone: transformers would take the base model from the hub
    with pytest.raises(ModelError, match=r"adapter_config\.json"):
        prepare(folder, tmp_path / "out", "encoder")


def test_nothing_beside_a_gguf_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.auto import auto_factory, tokenization_auto

    asked: list[object] = []

    def consent(trust: bool | None, *_: object, **__: object) -> bool:
        asked.append(trust)
        return bool(trust)

    for module in (auto_factory, tokenization_auto):
        monkeypatch.setattr(module, "resolve_trust_remote_code", consent)
    (tmp_path / "source").mkdir()
    file = tmp_path / "source" / "tiny.gguf"
    write_gguf(file)
    alone = prepare(file, tmp_path / "alone", "decoder")
    rewrite(file.parent / "adapter_config.json", base_model_name_or_path="org/other")
    rewrite(file.parent / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="E")
    beside = prepare(file, tmp_path / "beside", "decoder")
    assert {one.name: one.read_bytes() for one in alone.iterdir()} == {
        one.name: one.read_bytes() for one in beside.iterdir()
    }
    assert all(trust is False for trust in asked)


def test_a_tokenizer_of_an_unknown_class(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(tiny_llama, tmp_path / "model")
    usual = load_tokenizer(folder)("the cat")["input_ids"]
    assert capsys.readouterr().err == ""
    rewrite(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    assert load_tokenizer(folder)("the cat")["input_ids"] == usual
    told = capsys.readouterr().err
    assert "tokenizer_config.json" in told and "EvilTokenizer" in told
    (folder / "tokenizer.json").rename(folder / "vocab.json")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: `tokenizer_class`: .*EvilTokenizer"):
        load_tokenizer(folder)


def test_a_null_quantization_is_none(tiny_bert: Path, tmp_path: Path) -> None:
    folder = copied(tiny_bert, tmp_path / "model", quantization_config=None)
    assert load_model(prepare(folder, tmp_path / "out", "encoder"), "encoder")
