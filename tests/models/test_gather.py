"""Which rows count, and who shares them, on modules whose calls are known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.replay.gather import Gatherer, PrunableLayer

WIDTH = 6


def gathered(calls: Callable[[list[Any], Any], None], batches: list[Any], masks: list[Any] | None = None) -> Gatherer:
    """Three readers, called by ``calls`` for every batch (samples, length, width)."""
    layers = [torch.nn.Linear(WIDTH, 2) for _ in range(3)]
    readers = {name: PrunableLayer(name, layer, WIDTH, False) for name, layer in zip("abc", layers, strict=True)}
    gatherer = Gatherer(readers, gram=True)
    with torch.no_grad(), gatherer.hooked():
        for number, states in enumerate(batches):
            mask = masks[number] if masks else torch.ones(states.shape[:2], dtype=torch.bool)
            with gatherer.micro_batch(mask, None, set()):
                calls(layers, states)
    return gatherer


def states(samples: int) -> Any:
    return torch.randn(samples, 4, WIDTH, generator=torch.Generator().manual_seed(samples))


def test_the_same_tensor_changed_in_place_is_another_input() -> None:
    def calls(layers: list[Any], read: Any) -> None:
        layers[0](read)
        layers[1](read.view(read.shape))
        read.mul_(2)
        layers[2](read)

    original = states(2)
    found = gathered(calls, [original.clone()])
    assert found.groups() == (("a", "b"), ("c",))
    inputs = found.result()
    assert inputs["a"] is inputs["b"]
    torch.testing.assert_close(inputs["a"].squares, original.square().sum((0, 1)))
    torch.testing.assert_close(inputs["c"].squares, original.square().sum((0, 1)) * 4)


def test_tokens_count_flattened_or_not_and_padding_never() -> None:
    def calls(layers: list[Any], read: Any) -> None:
        layers[0](read)
        layers[1](read.reshape(-1, WIDTH) * 2)
        layers[2](input=read.transpose(0, 1).contiguous().transpose(0, 1) * 1)

    batches = [states(3), states(2)]
    masks = [torch.rand(batch.shape[:2]) < 0.5 for batch in batches]
    inputs = gathered(calls, batches, masks).result()
    rows = torch.cat([batch[mask] for batch, mask in zip(batches, masks, strict=True)])
    for name, factor in (("a", 1), ("b", 2), ("c", 1)):
        assert inputs[name].tokens == len(rows)
        torch.testing.assert_close(inputs[name].gram, (rows * factor).T @ (rows * factor))


def test_what_is_not_tokens_counts_once_and_only_where_nothing_else_is_read() -> None:
    positions = torch.randn(4, WIDTH)

    def calls(layers: list[Any], read: Any) -> None:
        layers[0](read)
        if len(read) > 1:
            layers[0](positions[None])
        layers[1](positions[None] * 1)
        layers[2](read)

    # In the last batch the positions are shaped like the tokens of its one sample.
    inputs = gathered(calls, [states(3), states(1)]).result()
    assert (inputs["a"].tokens, inputs["b"].tokens) == (16, 4)
    torch.testing.assert_close(inputs["b"].gram, positions.T @ positions)
    assert inputs["a"] is inputs["c"]


def test_a_layer_must_read_one_thing() -> None:
    def twice(layers: list[Any], read: Any) -> None:
        layers[0](read)
        layers[0](read * 2)

    def two_others(layers: list[Any], read: Any) -> None:
        layers[0](torch.ones(3, WIDTH))
        layers[0](torch.ones(5, WIDTH))

    def not_all(layers: list[Any], read: Any) -> None:
        layers[0](read)
        layers[2](read)

    for calls in (twice, two_others):
        with pytest.raises(UnsupportedError, match="a: its layer is called twice"):
            gathered(calls, [states(2)])
    with pytest.raises(ModelError, match="b: its layer is never called"):
        gathered(not_all, [states(2)]).result()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_cannot_be_summed_is_named(value: float) -> None:
    def calls(layers: list[Any], read: Any) -> None:
        layers[0](read)
        read = read * 1
        read[0, 0, 0] = value
        layers[1](read)

    with pytest.raises(ModelError, match="b: what its layer reads is NaN or infinite"):
        gathered(calls, [states(2)])
