"""What `export` writes is loaded by stock transformers; what no other program can hold is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.models.modules.load import load_model
from sparsebench.notebook import apply
from sparsebench.plan.single import SingleModel
from sparsebench.run import export as exports
from sparsebench.run.export import export
from sparsebench.storage import pack
from tests.command import call, succeed
from tests.ledger import samples

HALF = {"prune": "magnitude", "sparsity": 0.5}


def made(folder: Path, family: Any, step: Any, out: Path) -> Path:
    return apply(SingleModel("tiny", folder, family), step, out).folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return next(iter(model(input_ids=torch.arange(4, 20)[None]).values())).float()


@pytest.mark.parametrize("step", [HALF, {"quantize": "int8"}], ids=str)
def test_stock_transformers_gives_the_variants_outputs(step: Any, tiny_llama: Path, tmp_path: Path) -> None:
    folder = made(tiny_llama, "decoder", step, tmp_path / "made")
    for name in ["hf", "compressed-tensors"] if "quantize" in step else ["hf"]:
        if name != "hf":
            pytest.importorskip("compressed_tensors")
        distance = export(folder, "decoder", tmp_path / name, name)
        assert distance <= exports.TOLERANCE
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto").eval()
        assert torch.allclose(logits(stock), logits(load_model(folder, "decoder")), rtol=1e-2, atol=1e-2)
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())


def test_llama_cpp_loads_the_file_and_a_gguf_variant_is_exported_as_its_floats(
    tiny_llama: Path, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install '.[llamacpp]'")
    folder = made(tiny_llama, "decoder", HALF, tmp_path / "made")
    assert export(folder, "decoder", tmp_path / "gguf", "gguf") < 0.02
    (file,) = (tmp_path / "gguf").iterdir()
    assert file.read_bytes()[:4] == b"GGUF"
    folder = made(tiny_llama, "decoder", {"quantize": "gguf", "type": "Q8_0"}, tmp_path / "gguf-made")
    export(folder, "decoder", tmp_path / "hf", "hf")
    assert "gguf" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    assert not [*(tmp_path / "hf").glob("*.gguf")]


def test_a_source_or_a_file_is_exported_as_a_folder_is(tiny_bert: Path, tmp_path: Path) -> None:
    succeed("export", f"path:{tiny_bert}", "--out", tmp_path / "out")
    stock = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(stock), logits(load_model(tiny_bert, "encoder")))
    (tmp_path / "mine.gguf").write_text("no such file")
    refused = call("export", "mine.gguf", "--out", "gguf", cwd=tmp_path)
    assert refused.returncode == 2 and "mine.gguf: not a GGUF file" in refused.stderr


def test_a_packed_folder_is_unpacked_on_the_way(tiny_bert: Path, tmp_path: Path) -> None:
    folder = made(tiny_bert, "encoder", {"prune": "magnitude", "sparsity": 0.9}, tmp_path / "made")
    pack(folder, tmp_path / "shelf" / "small")
    shelf_changed = (tmp_path / "shelf").stat().st_mtime_ns
    succeed("export", tmp_path / "shelf" / "small", "--out", tmp_path / "out")
    assert (tmp_path / "shelf").stat().st_mtime_ns == shelf_changed
    stock = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(stock), logits(load_model(folder, "encoder")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out", "shelf"]


@pytest.mark.parametrize(
    ("change", "form", "culprit"),
    [({}, "compressed-tensors", "floats"), ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "hf", "width")],
)
def test_what_no_format_holds_is_refused(change: Any, form: str, culprit: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = made(tiny_bert, "encoder", HALF, tmp_path / "made")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedError, match=culprit):
        export(folder, "encoder", tmp_path / "out", form)
    assert not (tmp_path / "out").exists()


def test_other_outputs_leave_nothing(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "_distance", lambda *_: 0.5)
    with pytest.raises(ModelError, match="differ by"):
        export(tiny_bert, "encoder", tmp_path / "out", "hf")
    assert not [*tmp_path.iterdir()]


def test_a_variant_lies_in_the_manifests_own_work_folder(tiny_llama: Path, tmp_path: Path) -> None:
    ledger, work = tmp_path / "ledger.duckdb", tmp_path / "work"
    Ledger(ledger).ingest(samples.sample(samples.small()))
    ((variant,),) = query.run(
        ledger, "SELECT variant_id FROM variants WHERE recipe = 'magnitude/layer 50%' LIMIT 1"
    ).rows
    words = ["export", variant, "--ledger", ledger, "--out", tmp_path / "out"]
    refused = call(*words)
    assert refused.returncode == 2 and "--work" in refused.stderr
    shutil.copytree(tiny_llama, work / "variants" / variant)
    succeed(*words, "--work", work)
    assert (tmp_path / "out" / "model.safetensors").is_file()
