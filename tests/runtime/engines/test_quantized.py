"""Engines on quantized folders: integer kernels, judged against the floats that they stand for, or refused before loading."""

from itertools import product
from pathlib import Path

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.random_weights import write_random
from sparsebench.runtime import Setting, Workload, measure_latency, measure_memory, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.footprint import model_bytes
from sparsebench.runtime.workload import draw_prompt
from sparsebench.steps.contract import Step
from tests.making import make, quantize_step
from tests.runtime.engines.pruned import FAMILIES, dense_model, prune, started
from tests.sampling import a_third

WORK = Workload(batch=1, prompt=12, generate=4)
WAYS = {"int8": quantize_step(), "int4": quantize_step("int4", 32)}
KERNELS = {"int8": "_weight_int8pack_mm", "int4": "_weight_int4pack_mm_for_cpu"}


def quantized(dense: Path, family: Family, way: Step, out: Path) -> Path:
    make(dense, family, {way: out})
    return out


@pytest.mark.parametrize(
    ("name", "bits", "dtype"), a_third(product([*FAMILIES, "gpt2"], WAYS, ["bfloat16", "float32"]))
)
def test_hf_runs_integers(name: str, bits: str, dtype: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    dense, family = dense_model(name, request, tmp_path / "gpt2")
    source = SavedModel(quantized(dense, family, WAYS[bits], tmp_path / bits), family, dtype)
    found = started("hf")
    judged = found.parity(source, draw_prompt(Checkpoint(dense).config, WORK))
    assert 0 < judged.relative_l2 <= judged.tolerance < 0.1 and not judged.wraps_only
    loaded = found.load(source, 20, False)
    assert loaded.module.dtype == getattr(torch, dtype)
    assert KERNELS[bits] in found.kernel
    plain = engine("hf").load(SavedModel(dense, family, dtype), 20, True)
    assert memory.tensor_bytes(loaded) < memory.tensor_bytes(plain)
    memory.copy_out(loaded.module)
    assert model_bytes(source.folder, Setting("hf", 1, WORK, dtype=dtype)) > 0


@pytest.mark.parametrize(("name", "bits", "zeros"), a_third(product([*FAMILIES, "gpt2"], WAYS, [0.6, 0.0])))
def test_the_sparse_engine_multiplies_integers_without_zeros(
    name: str, bits: str, zeros: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dense, family = dense_model(name, request, tmp_path / "gpt2")
    pruned = prune(dense, tmp_path / "pruned", zeros) if zeros else dense
    source = SavedModel(quantized(pruned, family, WAYS[bits], tmp_path / bits), family, "bfloat16")
    found = started("sparse")
    judged = found.parity(source, draw_prompt(Checkpoint(dense).config, WORK))
    assert 0 < judged.relative_l2 <= judged.tolerance < 0.1 and not judged.wraps_only
    loaded = found.load(source, 20, False)
    layout = "bitmask" if zeros else "dense"
    assert f"{bits} {layout} " in found.kernel and "inputs in int8" in found.kernel
    hf = engine("hf").load(source, 20, True)
    assert zeros == 0 or memory.tensor_bytes(loaded) < memory.tensor_bytes(hf)


def test_deepspeed_wraps_them_at_one_rank(tiny_llama: Path, tmp_path: Path) -> None:
    source = SavedModel(quantized(tiny_llama, "decoder", WAYS["int8"], tmp_path / "out"), "decoder", "bfloat16")
    found = started("deepspeed")
    judged = found.parity(source, draw_prompt(Checkpoint(tiny_llama).config, WORK))
    assert 0 < judged.relative_l2 <= judged.tolerance
    found.load(source, 20, False)
    assert "_weight_int8pack_mm" in found.kernel


def test_a_model_without_a_matrix_that_fits_is_refused(tmp_path: Path) -> None:
    config = {
        "model_type": "bert", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
        "vocab_size": 90, "max_position_embeddings": 32,
    }  # fmt: skip
    dense = write_random(config, tmp_path / "m", "encoder")
    folder = quantized(dense, "encoder", quantize_step("int4"), tmp_path / "out")
    with pytest.raises(UnsupportedError, match="int4 kernel"):
        engine("hf").load(SavedModel(folder, "encoder"), 8, False)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hf", pytest.param("deepspeed", marks=pytest.mark.long)])
def test_a_quantized_variant_is_timed_beside_dense_floats(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = quantized(tiny_llama, "decoder", WAYS["int8"], tmp_path / "out")
    few = {"samples": 8, "threads": 1, "processes": 1, "phase_seconds": 0.5, "timeout_seconds": 100}
    how = Setting(name, 1, WORK, dtype="bfloat16", **few)
    found = {}
    measure_latency(tiny_llama, [("variant", folder)], "decoder", how, found.__setitem__)
    assert "_weight_int8pack_mm" in found["variant"].kernel and found["variant"].baseline == "paired"
    assert found["variant"].parity is not None
    weighed, dense = (measure_memory(one, "decoder", how) for one in (folder, tiny_llama))
    assert weighed.per_rank[0].tensor_bytes < dense.per_rank[0].tensor_bytes
