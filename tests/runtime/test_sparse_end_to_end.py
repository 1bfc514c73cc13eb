"""Tiny models of each family, pruned, under the sparse engine in a rank of their own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.runtime import LatencyResult, Setting, measure_memory
from sparsebench.runtime.footprint import model_bytes
from sparsebench.storage import pack
from tests.runtime.engines.pruned import prune
from tests.runtime.test_end_to_end import PHASES, collected, setting

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler")


@pytest.fixture
def models(tiny_llama: Path, tiny_bert: Path, tiny_t5: Path) -> Mapping[str, Path]:
    return {"encoder": tiny_bert, "decoder": tiny_llama, "encoder-decoder": tiny_t5}


def timed(dense: Path, variants: list[Path], family: str, how: Setting) -> list[LatencyResult]:
    return list(collected(dense, [(str(one), one) for one in variants], family, how).values())


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family if family == "encoder" else pytest.param(family, marks=pytest.mark.long) for family in PHASES]
)
def test_pairs_under_the_sparse_engine(models: Mapping[str, Path], family: str, tmp_path: Path) -> None:
    dense = models[family]
    pruned, packed = prune(dense, tmp_path / "pruned", 0.9), tmp_path / "packed"
    pack(pruned, packed)
    same, sparse, straight = timed(dense, [dense, pruned, packed], family, setting(1, "sparse"))
    for result in (same, sparse, straight):
        assert [one.phase for one in result.phases if one.side == "variant"] == PHASES[family]
        assert result.parity is not None and result.parity.relative_l2 <= result.parity.tolerance
        json.dumps(asdict(result), allow_nan=False)
    # A dense decoder runs in our kernels where the machine has instructions for them.
    assert same.parity is not None and same.parity.wraps_only == same.kernel.startswith("dense torch linear")
    for result in (sparse, straight):
        assert result.parity is not None and not result.parity.wraps_only
        assert result.kernel.split()[1] == "bitmask" and "more than 8 tokens" in result.kernel
    (kernel,) = timed(dense, [dense], family, setting(1, "sparse", forced=True))
    assert kernel.kernel.split()[1] == "dense" and kernel.parity is not None and not kernel.parity.wraps_only
    weighed = measure_memory(packed, family, setting(1, "sparse"))
    assert [phase.phase for phase in weighed.phases] == PHASES[family]
    whole = sum(info.nbytes for info in Checkpoint(dense).tensors.values())
    assert all(0 < row.tensor_bytes < 0.8 * whole for row in weighed.per_rank)


@pytest.mark.long
@pytest.mark.slow
def test_without_a_compiler_csr_is_named(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    pruned = prune(tiny_llama, tmp_path / "pruned", 0.9)
    (result,) = timed(tiny_llama, [pruned], "decoder", setting(1, "sparse", dtype="bfloat16"))
    assert "torch-csr ×14" in result.kernel
    assert any("torch's CSR" in note and "compiler" in note for note in result.notes)


@pytest.mark.parametrize("engine", ["deepspeed", "hf"])
def test_packed_is_for_sparse(tiny_bert: Path, tmp_path: Path, no_ranks: None, engine: str) -> None:
    pack(tiny_bert, tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="packed"):
        measure_memory(tmp_path / "packed", "encoder", setting(1, engine))


def test_the_estimate_of_a_packed_model_follows_its_nonzeros(tiny_bert: Path, tmp_path: Path) -> None:
    sizes = []
    for sparsity in (0.0, 0.5, 0.95):
        pack(prune(tiny_bert, tmp_path / f"pruned-{sparsity}", sparsity), tmp_path / f"packed-{sparsity}")
        sizes.append(model_bytes(tmp_path / f"packed-{sparsity}", setting(1, "sparse")))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] >= sum(info.nbytes for info in Checkpoint(tiny_bert).tensors.values())
