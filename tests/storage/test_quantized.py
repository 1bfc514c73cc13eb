"""Quantized models in packed and archive: back byte for byte, small enough, and run by no engine as packed codes."""

from collections import Counter
from pathlib import Path

import pytest

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.quantized import QuantizedCheckpoint
from sparsebench.models.random_weights import write_random
from sparsebench.runtime.measure import measure_latency
from sparsebench.runtime.results import Setting, Workload
from sparsebench.storage import measure, pack
from tests.making import make, prune_step, quantize_step
from tests.storage.test_storage_measure import _entropy

LLAMA = {
    "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 256, "intermediate_size": 704, "vocab_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of a realistic shape, half of them pruned, quantized every way."""
    home = tmp_path_factory.mktemp("quantized")
    write_random(LLAMA, home / "dense", "decoder")
    make(home / "dense", "decoder", {prune_step("magnitude", 0.5, "layer"): home / "pruned"})
    make(home / "pruned", "decoder", {quantize_step(bits): home / bits for bits in ("int8", "int4")})
    return {bits: home / bits for bits in ("int8", "int4")}


def _expected(folder: Path) -> tuple[int, int, float, float, int]:
    """Weights, nonzero ones, the two bounds and the bytes of all prunable parts, from the stored words one by one."""
    checkpoint = QuantizedCheckpoint(folder)
    n = nonzero = size = 0
    raw = entropy = 0.0
    for name in sorted(checkpoint.quantized):
        codes, bits = checkpoint.codes(name), checkpoint.scheme.bits
        values = codes.values.tolist()
        count = codes.values.numel()
        kept = [value % 2**bits for row in values for value in row if value]
        beside = {end: checkpoint.stored[f"{name}{end}"].nbytes for end in ("_scale", "_shape")}
        positions = _entropy([count - len(kept), len(kept)]) / 8
        n, nonzero = n + count, nonzero + len(kept)
        raw += positions + len(kept) * bits / 8 + sum(beside.values())
        entropy += positions + _entropy(list(Counter(kept).values())) / 8 + beside["_shape"]
        entropy += _entropy(list(Counter(codes.scale.reshape(-1).tolist()).values())) / 8
        size += checkpoint.stored[f"{name}_packed"].nbytes + sum(beside.values())
    return n, nonzero, raw, entropy, size


def test_sizes_and_bounds(quantized: dict[str, Path], tmp_path: Path) -> None:
    for way, folder in quantized.items():
        result = measure(folder, "decoder", ["dense", "packed", "archive"], tmp_path / "work")
        dense, packed, archive = result.sizes
        n, nonzero, raw, entropy, size = _expected(folder)
        assert (result.prunable, result.nonzero, dense.prunable_bytes) == (n, nonzero, size)
        assert nonzero <= n / 2
        assert (result.raw_value_bound, result.entropy_bound) == pytest.approx((raw, entropy), rel=1e-9)
        total = sum(info.nbytes for info in QuantizedCheckpoint(folder).stored.values())
        assert result.unprunable_bytes == total - size
        assert (packed.round_trip, archive.round_trip) == (True, True)
        assert raw <= packed.prunable_bytes <= 1.05 * raw, way
        assert entropy <= archive.prunable_bytes <= 1.05 * entropy, way


def test_not_even_the_sparse_engine_runs_packed_codes(quantized: dict[str, Path], tmp_path: Path) -> None:
    pack(quantized["int8"], tmp_path / "packed")
    setting = Setting("sparse", 1, Workload(prompt=4, generate=2), processes=1)
    with pytest.raises(UnsupportedError, match="packed int8"):
        measure_latency(tmp_path / "packed", [("packed", tmp_path / "packed")], "decoder", setting, lambda *_: None)
