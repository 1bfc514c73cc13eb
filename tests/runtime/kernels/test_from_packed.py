"""A packed tensor becomes the same matrix as its dense form, byte for byte, and a damaged one is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsebench.errors import StorageError
from sparsebench.runtime.kernels import Kernels, from_dense, from_packed
from sparsebench.runtime.kernels.matrix import LAYOUTS
from tests.runtime.kernels.test_products import BF16, F32, matrix
from tests.storage import packed_reference

MORE = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def forms(weight: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Index and values of a matrix in every encoding but raw, from the reference."""
    item = weight.element_size()
    data = weight.contiguous().view(torch.uint8).numpy().tobytes()
    elements = [data[place : place + item] for place in range(0, len(data), item)]
    values = torch.frombuffer(bytearray(b"".join(one for one in elements if any(one)) or b"\0"), dtype=torch.uint8)
    values = values[: values.numel() // item * item].view(weight.dtype)
    mask = np.packbits([any(one) for one in elements], bitorder="little")
    found = {"bitmask": torch.from_numpy(mask)}
    found["gaps8"] = torch.tensor(packed_reference.gap_symbols(elements, 255), dtype=torch.uint8)
    fours = packed_reference.gap_symbols(elements, 15)
    fours += [15] * (len(fours) % 2)
    pairs = zip(fours[::2], fours[1::2], strict=True)
    found["gaps4"] = torch.tensor([low | high << 4 for low, high in pairs], dtype=torch.uint8)
    return {name: (index, values) for name, index in found.items()}


@given(
    rows=st.integers(1, 40), cols=st.integers(1, 90), density=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    dtype=st.sampled_from([BF16, F32]), seed=st.integers(0, 10**6),
)  # fmt: skip
@MORE
def test_the_same_matrix_as_from_the_dense_form(
    compiled: Kernels, rows: int, cols: int, density: float, dtype: torch.dtype, seed: int
) -> None:
    weight = matrix(rows, cols, density, dtype, seed)
    dense = from_dense(compiled, weight)
    for encoding, (index, values) in forms(weight).items():
        packed = from_packed(compiled, encoding, index, values, rows, cols)
        assert packed.total == dense.total and torch.equal(packed.counts, dense.counts), encoding
        for layout in LAYOUTS:
            assert torch.equal(packed.laid_out(compiled, layout).data, dense.laid_out(compiled, layout).data), encoding


@pytest.mark.parametrize("encoding", ["bitmask", "gaps8", "gaps4"])
def test_what_does_not_fit_together_is_refused(compiled: Kernels, encoding: str) -> None:
    weight = matrix(20, 30, 0.2, F32, 5)
    index, values = forms(weight)[encoding]
    for broken in (
        (index, values[:-1]),
        (index[:-8], values),
        (torch.cat([index, index]), torch.cat([values, values])),
    ):
        with pytest.raises(StorageError, match="do not match"):
            from_packed(compiled, encoding, *broken, 20, 30)
