"""Experts in integers: those that lie in tensors of their own, and the refusal of those that lie in one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.quantized import QuantizedCheckpoint, Scheme
from sparsebench.models.modules.load import load_kernels, load_model
from sparsebench.models.modules.quantized_linear import Int8Linear
from sparsebench.models.shape.topology import View
from sparsebench.steps.contract import Step
from sparsebench.steps.grid import nearest
from tests.making import make, quantize_step
from tests.models.test_experts import stored, tokens

WAYS = [quantize_step(), quantize_step(rounding="gptq"), quantize_step("int4", 16, "gptq")]


def quantized(folder: Path, out: Path, ways: list[Step]) -> dict[Step, Any]:
    return make(folder, "decoder", {way: out / str(number) for number, way in enumerate(ways)}, tokens())


def test_experts_apart_are_quantized_and_run(tmp_path: Path) -> None:
    folder = stored("mixtral", "published", tmp_path)
    ids = tokens().batch.input_ids
    dense = load_model(folder, "decoder")
    found = quantized(folder, tmp_path, WAYS)
    for number, way in enumerate(WAYS):
        assert found[way].prunable and found[way].relative_error > 0
        model = load_model(tmp_path / str(number), "decoder")
        name = "model.layers.1.mlp.experts.gate_up_proj"
        error = (model.get_parameter(name) - dense.get_parameter(name)).norm() / dense.get_parameter(name).norm()
        assert 0 < error < (0.02 if way.name == "int8" else 0.8)
    with torch.no_grad():
        kernels = load_kernels(tmp_path / "0", "decoder")
        experts = [name for name, module in kernels.named_modules() if isinstance(module, Int8Linear)]
        assert sum(".experts." in name for name in experts) == 2 * 4 * 3
        mine, floats = kernels(input_ids=ids).logits, load_model(tmp_path / "0", "decoder")(input_ids=ids).logits
    assert (mine - floats).norm() < 0.03 * floats.norm()


def test_an_expert_without_tokens_is_rounded_to_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, way = stored("mixtral", "published", tmp_path), quantize_step(rounding="gptq")
    tensors = load_file(folder / "model.safetensors")
    path = "model.layers.1.block_sparse_moe"
    if f"{path}.gate.weight" not in tensors:
        path = "model.layers.1.mlp"
    tensors[f"{path}.gate.weight"] = torch.zeros_like(tensors[f"{path}.gate.weight"])  # ties go to the first two
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = quantized(folder, tmp_path, [way])[way]
    assert "expert matrices" in found.note and "rounded to the nearest" in found.note
    after = QuantizedCheckpoint(tmp_path / "0")
    same = []
    for name in sorted(after.quantized):
        if path in name and "experts" in name and name.endswith("w1.weight"):
            want = nearest(tensors[name], way.settings.scheme)
            same.append(torch.equal(after.codes(name).values, want.values))
    assert len(same) == 4 and sum(same) == 2
    unreached = f"{path}.experts.3.w1.weight"
    tensors[unreached][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=unreached):
        quantized(folder, tmp_path / "nan", [way])


def test_experts_in_one_tensor_are_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    folder = stored("mixtral", "fused", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsupportedError, match=r"experts\.gate_up_proj holds several experts"):
        quantized(folder, tmp_path, WAYS)
    assert sorted(tmp_path.rglob("*")) == before


def test_some_rows_of_a_quantized_matrix_are_those_of_the_whole() -> None:
    weights = torch.randn(8, 32)
    for scheme in (Scheme(8, None), Scheme(4, 16)):
        codes, view = nearest(weights, scheme), View("w", rows=(2, 5))
        assert view.rows is not None
        assert torch.equal(codes.cut(view.rows).expanded(torch.float32), view.shaped(codes.expanded(torch.float32)))
