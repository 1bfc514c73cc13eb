"""Tiny models of every architecture, calibration batches, and the slow reference: stock transformers with plain hooks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import MODEL_TYPES, auto_class
from sparsebench.models.random_weights import write_random
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import NOT_REPLAYED, parts
from tests.models.model_zoo import EXPERT_TYPES, small

SHAPES: dict[str, dict[str, Any]] = {name: {} for name in MODEL_TYPES if name not in (*NOT_REPLAYED, *EXPERT_TYPES)} | {
    # Windows shorter than the samples, so that local and global attention differ.
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "gpt_neo": {"window_size": 4},
    "mistral": {"sliding_window": 4},
    "modernbert": {"local_attention": 4, "num_hidden_layers": 3},
    # The projections of small models' style.
    "opt:post-norm": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "t5:gated": {"feed_forward_proj": "gated-gelu"},
    "deberta:relative": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2:unshared": {"share_att_key": False, "conv_kernel_size": 0},
    "gpt_neox:sequential": {"use_parallel_residual": False},
    "bloom:post-norm": {"apply_residual_connection_post_layernorm": True},
}  # fmt: skip
"""Changes to the zoo's configurations, by model type and variant."""

LENGTH, DECODED = 16, 11
"""DeBERTa-v2 has 16 relative positions here: as many as a sample has tokens."""


def written(shape: str, folder: Path, seed: int = 0, **changes: Any) -> tuple[Path, Any]:
    """A model folder with weights large enough for attention not to be flat, and its family."""
    model_type = shape.partition(":")[0]
    config = small(model_type, **{"initializer_range": 0.2, "init_std": 0.2, **SHAPES.get(shape, {}), **changes})
    family = MODEL_TYPES[model_type]
    return write_random(config, folder, family, "float32", seed), family


def rewrite(path: Path, **keys: object) -> None:
    """Set these keys of a JSON file."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | keys))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def batch(family: str, samples: int = 5, padded: bool = True) -> Batch:
    """Random tokens; with padding on the right, and one sample without any."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (samples, LENGTH), generator=generator)
    mask = torch.ones(samples, LENGTH, dtype=torch.bool)
    decoder_mask = torch.ones(samples, DECODED, dtype=torch.bool)
    if padded:
        for sample in range(1, samples):
            mask[sample, LENGTH - 2 * sample :] = False
            decoder_mask[sample, DECODED - sample :] = False
    ids = torch.where(mask, ids, 1)
    if family != "encoder-decoder":
        return Batch(ids, mask)
    decoder_ids = torch.randint(3, 90, (samples, DECODED), generator=generator)
    return Batch(ids, mask, torch.where(decoder_mask, decoder_ids, 1), decoder_mask)


def stock(folder: Path, family: Any, dtype: str = "auto") -> Any:
    """The model as transformers' own loader gives it."""
    return auto_class(family, Checkpoint(folder).config).from_pretrained(folder, dtype=dtype).eval()


def assert_close(found: Any, wanted: Any, what: str) -> None:
    """Within float32's rounding of the largest value."""
    scale = max(1.0, float(wanted.abs().max())) if wanted.numel() else 1.0
    torch.testing.assert_close(
        found.double(), wanted.double(), rtol=1e-4, atol=5e-5 * scale, msg=lambda text: f"{what}: {text}"
    )


class Stock:
    """The whole model in stock transformers: what it returns, and what every prunable layer reads."""

    def __init__(self, folder: Path, family: Any, given: Batch, changed: Mapping[str, Any] | None = None) -> None:
        self.model = stock(folder, family)
        self.parts = {name: part for name, part in parts(Checkpoint(folder), family).items() if part.prunable}
        self.read: dict[str, list[Any]] = {name: [] for name in self.parts}
        with torch.no_grad():
            for name, tensor in (changed or {}).items():
                self.model.get_parameter(name).copy_(tensor)
            for name in self.parts:
                module = self.model.get_submodule(name.removesuffix(".weight"))
                module.register_forward_pre_hook(lambda _, args, name=name: self.read[name].append(args[0].clone()))
            self.final = self._final(family, given)

    def _final(self, family: str, given: Batch) -> Any:
        mask = given.attention_mask.long()
        if family != "encoder-decoder":
            return self.model.base_model(input_ids=given.input_ids, attention_mask=mask)[0]
        found = []
        self.model.get_decoder().register_forward_hook(lambda *call: found.append(call[-1][0]))
        assert given.decoder_attention_mask is not None
        self.model(
            input_ids=given.input_ids, attention_mask=mask, decoder_input_ids=given.decoder_input_ids,
            decoder_attention_mask=given.decoder_attention_mask.long(),
        )  # fmt: skip
        return found[0]

    def rows(self, name: str, given: Batch) -> Any:
        """What the layer reads, (tokens, width), padding left out; relative positions only where it reads no tokens."""
        part = self.parts[name]
        mask = given.attention_mask
        if (
            given.decoder_attention_mask is not None
            and part.stack == "decoder"
            and part.kind not in ("cross_k", "cross_v")
        ):
            mask = given.decoder_attention_mask
        # Tokens come first where DeBERTa uses one projection for both.
        values = self.read[name][0]
        if values.shape[0] != mask.shape[0] and values.shape[0] != mask.numel():
            return values.reshape(-1, values.shape[-1])
        return values.reshape(-1, values.shape[-1])[mask.reshape(-1)]
