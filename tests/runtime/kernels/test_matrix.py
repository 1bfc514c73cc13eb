"""Parts of a packed file are used as they are, and what does not fit together is refused before a kernel reads it."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsebench.errors import ModelError, SparsebenchError, StorageError
from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels
from sparsebench.runtime.kernels.matrix import bitmask, bitmask_is_smaller, dense, integers, to_bitmask
from sparsebench.storage import pack
from sparsebench.storage.packed import PackedCheckpoint
from tests.runtime.kernels.test_products import BF16, weights


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A packed folder whose tensor ``w`` is a bitmask, and that tensor."""
    weight = weights(70, 192, 0.5, 1).to(BF16) + 0.0
    (tmp_path / "dense").mkdir()
    save_file({"a": torch.ones(3, dtype=torch.int8), "w": weight}, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text("{}")
    pack(tmp_path / "dense", tmp_path / "packed")
    return tmp_path / "packed", weight


def test_a_files_bitmask_is_mapped_and_multiplied(compiled: Kernels, packed: tuple[Path, torch.Tensor]) -> None:
    folder, weight = packed
    parts = PackedCheckpoint(folder).mask_and_values("w")
    assert parts is not None and not any(part.flags.owndata for part in parts)
    found, own = bitmask("bfloat16", 70, 192, *parts), to_bitmask(weight)
    assert all(torch.equal(part, own.tensors[name]) for name, part in found.tensors.items())
    x = torch.randn(1, 192).to(BF16)
    layers = [KernelLinear(compiled, matrix, Autotuner()) for matrix in (found, own)]
    assert torch.equal(layers[0](x), layers[1](x))


def test_a_mask_that_counts_wrong_is_refused(packed: tuple[Path, torch.Tensor]) -> None:
    parts = PackedCheckpoint(packed[0]).mask_and_values("w")
    assert parts is not None
    index, values = parts
    flipped = index.copy()
    flipped[3] ^= 1
    for broken in ((flipped, values), (index, values[:-2]), (index, values[:-1]), (index[:-8], values)):
        with pytest.raises(StorageError, match="do not match"):
            bitmask("bfloat16", 70, 192, *broken)


def test_scales_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    words, scale = torch.zeros(4, 32, dtype=torch.int32), torch.ones(4, 2, dtype=BF16)
    assert integers(words, "int4", 256, scale, 128).group_size == 128
    for broken in (torch.inf, torch.nan):
        wrong = scale.clone()
        wrong[1, 1] = broken
        with pytest.raises(StorageError, match="not finite"):
            integers(words, "int4", 256, wrong, 128)
    for columns, parts, group in ((256, scale[:, :1], 128), (257, scale, 128), (256, scale, 64)):
        with pytest.raises(StorageError, match="columns"):
            integers(words, "int4", columns, parts, group)


def test_a_file_that_was_cut_short_or_has_offsets_beyond_it_is_refused_by_name(
    packed: tuple[Path, torch.Tensor],
) -> None:
    (path,) = packed[0].glob("*.packed")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(SparsebenchError, match=path.name):
        PackedCheckpoint(packed[0]).mask_and_values("w")
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    begin, end = header["w#values"]["data_offsets"]
    header["w#values"]["data_offsets"] = [begin, end + 10**6]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(SparsebenchError, match=path.name):
        PackedCheckpoint(packed[0]).mask_and_values("w")


def test_only_bfloat16_and_float32_are_held_as_floats() -> None:
    for make in (dense, to_bitmask):
        with pytest.raises(ModelError, match="float16"):
            make(torch.eye(8, dtype=torch.float16))


@pytest.mark.parametrize(("kind", "least"), [("bfloat16", 0.16), ("int8", 0.22), ("int4", 0.35)])
def test_a_bitmask_is_used_where_it_saves_a_tenth_of_the_bytes(kind: str, least: float) -> None:
    assert bitmask_is_smaller(kind, 100, 1000, round(100_000 * (1 - least - 0.01)))
    assert not bitmask_is_smaller(kind, 100, 1000, round(100_000 * (1 - least + 0.01)))
    assert not bitmask_is_smaller(kind, 0, 1000, 0) and not bitmask_is_smaller(kind, 100, 0, 0)


def test_a_matrix_without_any_value_has_memory_to_point_to(compiled: Kernels) -> None:
    empty = bitmask("int8", 2, 64, np.zeros(16, np.uint8), np.zeros(0, np.uint8), scales=torch.ones(2, 1))
    layer = KernelLinear(compiled, empty, Autotuner())
    assert layer(torch.ones(1, 64, dtype=BF16)).tolist() == [[0.0, 0.0]]
