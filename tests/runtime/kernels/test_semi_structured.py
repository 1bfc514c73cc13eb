"""2:4 layers: the way in and out of cuSPARSELt, whose functions stubs stand for here. They have not run on a GPU."""

from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.runtime.kernels import torch_sparse


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """cuSPARSELt as a plain product; the numbers of tokens for which it was asked which algorithm is fastest."""
    searched: list[int] = []

    def search(packed: torch.Tensor, dense: torch.Tensor, transpose_result: bool) -> torch.Tensor:
        searched.append(dense.shape[1])
        return torch.tensor(7)

    def product(
        packed: torch.Tensor, dense: torch.Tensor, bias: Any, transpose_result: bool, alg_id: int
    ) -> torch.Tensor:
        assert dense.shape[1] % torch_sparse.TOKEN_MULTIPLE == 0 and alg_id == 7 and transpose_result
        return (packed @ dense).t()

    stubs = (
        (torch, "_cslt_compress", torch.clone),
        (torch, "_cslt_sparse_mm_search", search),
        (torch, "_cslt_sparse_mm", product),
        (torch.cuda, "get_device_capability", lambda device: (9, 0)),
        (torch.backends.cusparselt, "is_available", lambda: True),
    )
    for module, name, stub in stubs:
        monkeypatch.setattr(module, name, stub)
    return searched


def two_of_four() -> torch.Tensor:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    weight.view(64, 32, 4)[:, :, 1::2] = 0
    return weight.to(torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 8, 13])
def test_the_layer_multiplies_any_number_of_tokens(ampere: list[int], tokens: int) -> None:
    weight, x = two_of_four(), torch.randn(2, tokens, 128).to(torch.bfloat16)
    layer = torch_sparse.semi_structured(weight, "cpu")
    for _ in range(2):
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, weight))
    assert ampere == [-(-2 * tokens // 8) * 8], "which algorithm is fastest is asked once"


def test_a_layer_can_be_moved_while_gradients_are_off(ampere: list[int]) -> None:
    with torch.inference_mode():
        layer = torch.nn.Sequential(torch_sparse.semi_structured(two_of_four(), "cpu")).to("cpu")
        assert layer[0].packed.device.type == "cpu"
        assert layer[0].weight.is_meta and [name for name, _ in layer.named_parameters()] == []


def test_what_is_not_24_or_cannot_be_is_left_or_refused(ampere: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_sparse.semi_structured(torch.ones(64, 128, dtype=torch.bfloat16), "cpu") is None
    assert torch_sparse.semi_structured(two_of_four()[:60], "cpu") is None
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="needs cuSPARSELt"):
        torch_sparse.semi_structured(two_of_four(), "cpu")
