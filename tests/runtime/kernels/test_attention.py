"""The attention of one new token equals torch's, shared keys and masks included."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsebench.runtime.kernels.attention import attend


@pytest.mark.parametrize("shared", [1, 3, 6])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
def test_it_gives_what_torch_gives(shared: int, mask: str, tokens: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(batch, 6, tokens, 16, generator=generator).bfloat16()
    key, value = (torch.randn(batch, shared, 70, 16, generator=generator).bfloat16() for _ in range(2))
    seen = torch.rand(batch, 1, tokens, 70, generator=generator) < 0.7
    given = {"none": None, "bool": seen, "float": torch.where(seen, 0.0, -1e9).bfloat16()}[mask]
    module = SimpleNamespace(num_key_value_groups=6 // shared, is_causal=True)
    for scaling in (None, 0.3):
        ours, _ = attend(module, query, key, value, given, scaling=scaling, dropout=0.0)
        torchs, _ = sdpa_attention_forward(module, query, key, value, given, scaling=scaling, dropout=0.0)  # type: ignore[arg-type]
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        assert torch.allclose(ours.float(), torchs.float(), atol=0.02)
