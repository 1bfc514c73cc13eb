"""Hidden channels: the model without them says what the whole one says with zeros there and norms that do not count them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models import residual
from sparsebench.models.architectures import ARCHITECTURES
from sparsebench.models.axes import shape
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.families import MODEL_TYPES
from sparsebench.models.load import load_model
from sparsebench.models.types import transformers_config
from sparsebench.steps.contract import Evidence
from tests.models.model_zoo import small
from tests.models.replaying import batch, written
from tests.models.test_axes import random_everywhere
from tests.steps.shrink.making import shrunk

USUAL = ("gemma2", "llama", "longt5", "nemotron", "nomic_bert", "olmo2", "phi3", "t5", "mt5")
"""Every layout and norm once; the others are looked at in the long tests."""
TYPES = [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in sorted(residual.HEAD_SIZE)]
ONE_MORE = ("gemma", "gemma2", "gemma3_text", "nemotron")


class Masked(torch.nn.Module):
    """A norm of the channels that stay alone, written out; zeros elsewhere."""

    def __init__(self, norm: Any, stay: list[int], one_more: bool) -> None:
        super().__init__()
        self.norm, self.stay, self.one_more = norm, stay, one_more

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        kept = states[..., self.stay]
        if isinstance(self.norm, torch.nn.LayerNorm) or type(self.norm).__name__ == "OlmoLayerNorm":
            kept = kept - kept.mean(-1, keepdim=True)
        eps = getattr(self.norm, "variance_epsilon", getattr(self.norm, "eps", 1e-5))
        made = torch.zeros_like(states)
        made[..., self.stay] = kept / (kept.pow(2).mean(-1, keepdim=True) + eps).sqrt()
        if getattr(self.norm, "weight", None) is not None:
            made = made * (self.norm.weight + self.one_more)
        if getattr(self.norm, "bias", None) is not None:
            made = made + self.norm.bias
        gone = torch.ones(states.shape[-1])
        gone[self.stay] = 0
        return made * (1 - gone)


def said(model: Any, family: Any) -> torch.Tensor:
    """Logits, or an encoder's last states."""
    given = batch(family, samples=3, padded=False)
    words = {"input_ids": given.input_ids, "attention_mask": given.attention_mask.long()}
    if given.decoder_input_ids is not None:
        words["decoder_input_ids"] = given.decoder_input_ids
    with torch.no_grad():
        found: torch.Tensor = model(**words)[0]
    return found


def masked(folder: Path, family: Any, stay: list[int], hidden: int) -> torch.Tensor:
    """What the whole model says whose channels but ``stay`` are zeros, and whose norms do not count them."""
    model = load_model(folder, family, "float64")
    kind = Checkpoint(folder).config["model_type"]
    for path, module in list(model.named_modules()):
        sizes = [getattr(module, "weight", None), *getattr(module, "normalized_shape", ())]
        wide = any(
            size == hidden if isinstance(size, int) else size is not None and size.shape == (hidden,) for size in sizes
        )
        if "Norm" in type(module).__name__ and wide and not path.endswith(("q_norm", "k_norm")):
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, Masked(module, stay, kind in ONE_MORE))
    gone = torch.ones(hidden)
    gone[stay] = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.shape[1] == hidden:
            module.register_forward_hook(lambda module, args, returned: returned * (1 - gone))
    found = said(model, family)
    return found[..., stay] if family == "encoder" else found


@pytest.mark.parametrize("kind", TYPES)
def test_channels_that_went_are_zeros_that_norms_do_not_count(kind: str, tmp_path: Path) -> None:
    """Heads have a size of their own, so that nothing else is as wide as the states."""
    folder, family = (
        written(kind, tmp_path / "model", hidden_size=48)
        if "d_model" not in small(kind)
        else written(kind, tmp_path / "model", d_model=48)
    )
    random_everywhere(folder)
    whole = shape(Checkpoint(folder), family)
    axis = residual.channels(whole, family)
    out, result = shrunk(folder, family, tmp_path / "smaller", "random", keep=0.75, of="hidden")
    count = transformers_config(Checkpoint(out).config).hidden_size
    assert isinstance(result, Evidence), result
    assert (axis.units, count) == (48, 36)
    table = next(name for name, place in whole.places.items() if place.kind == "embedding" and place.layer is None)
    before, after = Checkpoint(folder).load(table), Checkpoint(out).load(table)
    # Gemma's table is multiplied, in all channels alike.
    ratio = (48 / 36) ** 0.5 if kind.startswith("gemma") else 1
    stay = [
        channel for channel in range(48)
        if any(torch.allclose(ratio * before[:, channel], column, atol=1e-6) for column in after.T)
    ]  # fmt: skip
    assert len(stay) == 36
    expected = masked(folder, family, stay, 48)
    scale = max(1.0, float(expected.abs().max()))
    assert float((masked(out, family, list(range(36)), 36) - expected).abs().max()) <= 1e-6 * scale
    # transformers' own norms take squares in float32.
    alone, dense = (said(load_model(one, family, "float64"), family) for one in (out, folder))
    assert float((alone - expected).abs().max()) <= 1e-5 * scale
    assert float((dense[..., stay] if family == "encoder" else dense).sub(expected).abs().max()) > 1e-3
    sizes = [sum(one.numel() for one in load_model(path, family).parameters()) for path in (folder, out)]
    lost = sum(whole.checkpoint.tensors[cut.tensor].numel // 48 for cut in axis.cuts)
    assert sizes[0] - sizes[1] == 12 * lost and result.parameters == sizes[1]


@pytest.mark.parametrize("kind", sorted({*ARCHITECTURES} - {*residual.HEAD_SIZE}))
def test_a_type_whose_heads_follow_from_the_hidden_size_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind) as told:
        residual.refuse({"model_type": kind})
    assert told.value.hint


def test_a_tensor_that_transformers_does_not_build_is_refused_by_name(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    found = shape(Checkpoint(folder), family)
    found.checkpoint.tensors["model.extra.weight"] = next(iter(found.checkpoint.tensors.values()))
    found.places["model.extra.weight"] = next(iter(found.places.values()))  # type: ignore[index]
    with pytest.raises(UnsupportedError, match=r"model\.extra"):
        residual.channels(found, family)


def test_a_hidden_size_that_the_tensors_do_not_have_is_refused(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 40, "head_dim": 8}))
    with pytest.raises(ModelError, match="hidden size of 40"):
        residual.channels(shape(Checkpoint(folder), family), family)


def test_types_are_known() -> None:
    assert {*residual.HEAD_SIZE} <= {*ARCHITECTURES} and residual.ROOT | {"nemotron"} == residual.ONE_MORE
    assert {MODEL_TYPES[kind] for kind in residual.HEAD_SIZE} == {"decoder", "encoder", "encoder-decoder"}
