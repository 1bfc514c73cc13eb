"""The sparse engine inside one process: loading, parity, what it says about itself."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.build import build_model
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare
from sparsebench.native import Missing
from sparsebench.runtime import Workload, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.engines.sparse import Sparse
from sparsebench.runtime.kernels import KernelLinear
from sparsebench.runtime.kernels.linear import TILING_LEVELS
from sparsebench.runtime.kernels.matrix import LEVELS
from sparsebench.runtime.parity import distance, outputs
from sparsebench.runtime.workload import Prompt, draw_prompt
from sparsebench.storage import pack
from tests.making import make, prune_step
from tests.models.replaying import stock, written
from tests.models.test_experts import stored
from tests.runtime.engines.pruned import FAMILIES, dense_model, prune, started


@pytest.fixture(params=[*FAMILIES, "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A folder with half of its matrices zero, and its family."""
    dense, family = dense_model(request.param, request, tmp_path / "gpt2")
    return prune(dense, tmp_path / "pruned", 0.5), family


def prompt(config: Mapping[str, Any]) -> Prompt:
    return draw_prompt(config, Workload(1, 12, 2))


def sparse_layers(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {name: one for name, one in module.named_modules() if hasattr(one, "nonzeros")}


def test_an_assembled_model_is_the_loaded_one(model: tuple[Path, str]) -> None:
    folder, family = model
    reference, own = stock(folder, family), build_model(Checkpoint(folder), family)
    assert own.dtype == reference.dtype and not own.training
    mine, theirs = own.state_dict(), reference.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    told = [{name: one.requires_grad for name, one in made.named_parameters()} for made in (own, reference)]
    assert told[0] == told[1], "torch multiplies by a weight that needs no gradient in another way, at times slowly"
    words = prompt(own.config.to_dict())  # buffers that no file has are compared by what is computed with them
    assert distance(outputs(own, family, words), outputs(reference, family, words)) < 1e-6
    assert memory.tensor_bytes(own) == memory.tensor_bytes(reference)


@pytest.mark.long
def test_packed_and_dense_load_alike_and_hold_no_dense_matrix(model: tuple[Path, str], tmp_path: Path) -> None:
    folder, family = model
    pack(folder, tmp_path / "packed")
    dense, packed = (
        started("sparse").load(SavedModel(one, family), 40, False) for one in (folder, tmp_path / "packed")
    )
    ours, theirs = (dict(one.module.named_buffers()) for one in (dense, packed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (dict(one.module.named_parameters()) for one in (dense, packed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    layers = sparse_layers(packed.module)
    assert len(layers) >= 8
    for one in layers.values():
        assert (isinstance(one, KernelLinear) and not list(one.parameters())) or one.bias is not None
    assert memory.tensor_bytes(packed) < 0.8 * memory.tensor_bytes(load_model(folder, family))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_parity_with_the_plain_model(model: tuple[Path, str], dtype: str) -> None:
    folder, family = model
    found = started("sparse")
    judged = found.parity(SavedModel(folder, family, dtype), prompt(Checkpoint(folder).config))
    assert judged is not None and not judged.wraps_only
    assert judged.relative_l2 <= judged.tolerance < 0.05
    if judged.dtype == "float32":
        assert judged.relative_l2 < 1e-5


def test_in_float32_bfloat16_weights_keep_their_16_bits(tiny_llama: Path, tiny_t5: Path, tmp_path: Path) -> None:
    """A T5 asks its layers for their dtype and rounds to it."""
    prepare(tiny_t5, tmp_path / "t5", "encoder-decoder", "bfloat16")
    for place, family in ((tiny_llama, "decoder"), (tmp_path / "t5", "encoder-decoder")):
        folder = prune(place, tmp_path / f"pruned-{family}", 0.9)
        found, words = started("sparse"), prompt(Checkpoint(folder).config)
        loaded = found.load(SavedModel(folder, family, "float32"), 40, False).module
        assert {one.matrix_type for one in sparse_layers(loaded).values()} == {"bfloat16"}
        assert "bfloat16 bitmask " in found.kernel
        stock = load_model(folder, family, "float32")
        assert distance(outputs(loaded, family, words), outputs(stock, family, words)) < 1e-5
        assert found.parity(SavedModel(folder, family, "float32"), words).relative_l2 < 1e-5


def test_a_dense_float32_model_stays_what_it_is_and_says_so(tiny_llama: Path) -> None:
    found, source = started("sparse"), SavedModel(tiny_llama, "decoder", "float32")
    judged = found.parity(source, prompt(Checkpoint(tiny_llama).config))
    assert judged is not None and judged.wraps_only
    assert not sparse_layers(found.load(source, 40, False).module)
    assert found.kernel == "dense torch linear ×15 (attention ×8, head ×1, mlp ×6)"


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_bfloat16_layers_of_few_zeros_are_dense_kernels(tiny_llama: Path, tmp_path: Path, share: float) -> None:
    folder = prune(tiny_llama, tmp_path / "pruned", share) if share else tiny_llama
    found, source = started("sparse"), SavedModel(folder, "decoder", "bfloat16")
    if getattr(found.kernels, "level", "") not in TILING_LEVELS:
        assert not sparse_layers(found.load(source, 40, False).module)
        return
    judged = found.parity(source, prompt(Checkpoint(folder).config))
    assert judged is not None and not judged.wraps_only and judged.relative_l2 <= judged.tolerance
    layers = sparse_layers(found.load(source, 40, False).module)
    assert len(layers) == 15 and {layer.layout for layer in layers.values()} == {"dense"}


def test_a_baseline_is_dense_whatever_its_zeros(tiny_llama: Path, tmp_path: Path) -> None:
    folder = prune(tiny_llama, tmp_path / "pruned", 0.9)
    pack(folder, tmp_path / "packed")
    for place in (folder, tmp_path / "packed"):
        assert not sparse_layers(started("sparse").load(SavedModel(place, "decoder"), 40, True).module)


def test_the_kernels_are_named_by_layer_class(tiny_llama: Path, tmp_path: Path) -> None:
    found = started("sparse")
    folder = prune(tiny_llama, tmp_path / "pruned", 0.99)
    loaded = found.load(SavedModel(folder, "decoder", "bfloat16"), 40, False)
    level = rf"({'|'.join(LEVELS)})"
    head = rf"(bfloat16 dense {level} ×1 \(head\)|dense torch linear ×1 \(head\))"
    layers = rf"bfloat16 bitmask {level} ×14 \(attention ×8, mlp ×6\)"
    assert re.fullmatch(f"{layers}, {head}|{head}, {layers}", found.kernel)
    held = {buffer.data_ptr() for buffer in loaded.module.get_output_embeddings().buffers()}
    assert held in ({loaded.module.get_input_embeddings().weight.data_ptr()}, set()), "a tied head is held once"
    with torch.inference_mode():
        loaded(input_ids=torch.tensor([[5, 6, 7] * 4]))
    assert "more than 8 tokens: " in found.kernel


@pytest.mark.parametrize("kind", ["dense", "packed"])
def test_a_model_without_any_weight_left_runs(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = place = prune(tiny_llama, tmp_path / "pruned", 1.0)
    if kind == "packed":
        place = tmp_path / "packed"
        pack(folder, place)
    found, words = started("sparse"), prompt(Checkpoint(folder).config)
    judged = found.parity(SavedModel(place, "decoder"), words)
    assert judged is not None and not judged.wraps_only and judged.relative_l2 <= judged.tolerance
    layers = sparse_layers(found.load(SavedModel(place, "decoder"), 40, False).module)
    assert sorted(one.nonzeros for one in layers.values())[:14] == [0] * 14


def test_without_a_compiler_torchs_csr_runs_and_is_noted(
    model: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, family = model
    monkeypatch.setattr("sparsebench.runtime.engines.sparse.kernels", lambda: Missing("no C++ compiler"))
    found = engine("sparse")
    (note,) = found.start(0, 1)
    assert "torch's CSR" in note and "no C++ compiler" in note
    judged = found.parity(SavedModel(folder, family, "bfloat16"), prompt(Checkpoint(folder).config))
    assert judged is not None and judged.relative_l2 <= judged.tolerance


def test_float16_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    narrow = SavedModel(prune(tiny_llama, tmp_path / "pruned", 0.5), "decoder", "float16")
    with pytest.raises(UnsupportedError, match="float16"):
        started("sparse").load(narrow, 40, False)
    with pytest.raises(UnsupportedError, match="float16"):
        started("sparse").parity(narrow, prompt(Checkpoint(tiny_llama).config))


@pytest.mark.parametrize("form", ["fused", "published"])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "llama4_text"])
def test_experts_without_their_zeros_say_what_the_plain_model_says(kind: str, form: str, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    make(stored(kind, form, tmp_path), "decoder", {prune_step("magnitude", 0.7, "layer"): folder})
    pack(folder, tmp_path / "packed")
    words = prompt(Checkpoint(folder).config)
    for place in (folder, tmp_path / "packed"):
        found = started("sparse")
        judged = found.parity(SavedModel(place, "decoder"), words)
        assert not judged.wraps_only and judged.relative_l2 < 1e-5
        loaded, plain = found.load(SavedModel(place, "decoder"), 40, False).module, load_model(folder, "decoder")
        assert distance(outputs(loaded, "decoder", words), outputs(plain, "decoder", words)) < 1e-5
        layers = [name for name in sparse_layers(loaded) if ".experts." in name]
        assert len(layers) == (24 if (kind, form) == ("mixtral", "published") else 16), "gate and up lie apart there"
        assert "experts" not in found.kernel


class TritonError(Exception):
    """As Triton's own, which is no RuntimeError."""


def test_on_a_gpu_without_a_compiler_layers_stay_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [TritonError("Failed to find C compiler.\nmore"), RuntimeError("CUDA out of memory")]

    def layer(weight: torch.Tensor, device: str) -> Any:
        raise errors.pop(0)

    kernels = SimpleNamespace(BitmaskLinear=layer, MOST_TOKENS=16)
    monkeypatch.setitem(sys.modules, "sparsebench.runtime.kernels.bitmask_gpu", kernels)
    monkeypatch.setattr("sparsebench.runtime.engines.sparse.find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = Sparse()
    (note,) = found.start(0, 1)
    assert not found.has_triton and "stay dense" in note and "(Failed to find C compiler.)" in note
    with pytest.raises(RuntimeError, match="out of memory"):
        Sparse().start(0, 1)


def test_on_a_gpu_a_part_that_was_pruned_away_stays_torchs() -> None:
    found = Sparse()
    found.forced = True
    for shape in ((0, 64), (64, 0)):
        assert found._gpu_layer(torch.empty(shape, dtype=torch.bfloat16)) is None


def test_falcons_layers_are_replaced_and_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prune(written("falcon", tmp_path / "falcon")[0], tmp_path / "pruned", 0.7)
    found = started("sparse")
    assert found.parity(SavedModel(folder, "decoder"), prompt(Checkpoint(folder).config)).relative_l2 < 1e-5
    assert len(sparse_layers(found.load(SavedModel(folder, "decoder"), 40, False).module)) == 8
    monkeypatch.setattr("sparsebench.models.modules.build.LINEAR_TYPES", frozenset({"Linear"}))
    with pytest.raises(UnsupportedError, match="falcon: none of its layers"):
        started("sparse").load(SavedModel(folder, "decoder"), 40, False)
