"""Compares an engine's output with the plain model's, in float32, on a copy with few blocks of full width."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebench.errors import ParityError, UnsupportedError
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.files.families import DECODER_LAYERS, LAYERS, cache_name
from sparsebench.runtime.failures import refused
from sparsebench.runtime.results import PARITY_BLOCKS, Parity
from sparsebench.runtime.workload import Prompt, start_token

PARITY_TOKENS, SHORT_TOKENS = 32, 3
TOLERANCE = 1e-4
ROUNDING = 2.0
"""An engine with its own kernels may differ from the float32 model by this many times what the plain model in the
engine's dtype does, plus TOLERANCE. Both keep the same weights and round the same activations, in another order, and in
either a value near a threshold may fall on its other side. A wrong kernel or scale is off by an order of
magnitude more."""
COUNTS = (*LAYERS, *DECODER_LAYERS)
LISTS = ("layer_types", "attention_layers", "mlp_layer_types", "no_rope_layers")


def shorten(model: Any, blocks: int = PARITY_BLOCKS) -> int:
    """Shorten every stack of transformer blocks of ``model`` to its first ``blocks``, in place; return the longest length.

    A stack is an outermost ModuleList that is as long as one of the configuration's layer counts.
    Raises UnsupportedError where there is none.
    """
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}.values()
    depths = {
        getattr(config, name) for config in configs for name in COUNTS if isinstance(getattr(config, name, None), int)
    }
    longest, inside = 0, ""
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.ModuleList) or (inside and name.startswith(inside)) or len(module) not in depths:
            continue
        del module[blocks:]
        longest, inside = max(longest, len(module)), name + "."
    if not longest:
        raise UnsupportedError(f"no stack of blocks was found in a {type(model).__name__}, so parity cannot be judged")
    for config in configs:
        for name in COUNTS:
            if isinstance(getattr(config, name, None), int):
                setattr(config, name, min(blocks, getattr(config, name)))
        for name in LISTS:
            # Some configurations derive the list from the counts: it is short already.
            if isinstance(getattr(config, name, None), list) and not isinstance(
                getattr(type(config), name, None), property
            ):
                setattr(config, name, getattr(config, name)[:blocks])
    return longest


def check_parity(model: Any, wrap: Callable[[Any], Any], family: str, prompt: Prompt, wraps_only: bool) -> Parity:
    """Compare the outputs of ``model`` (which is changed here) plain and as ``wrap`` makes it, in float32.

    Raises UnsupportedError when the engine's model does not run at all, ParityError above the tolerance.
    """
    blocks = shorten(model)
    model = model.float().to(prompt.ids.device).eval()
    with torch.inference_mode():
        plain = _output(model, family, prompt)
        wrapped = wrap(model)  # in place of the plain one: two copies of a large vocabulary would not fit everywhere
        with refused("the engine's model does not run", TypeError, IndexError, AttributeError):
            engine = _output(wrapped, family, prompt)
    parity = Parity(distance(engine, plain), TOLERANCE, "float32", blocks, wraps_only)
    return checked(parity, "measure at one rank, or report the model's architecture")


@dataclass(frozen=True)
class PlainOutputs:
    """The outputs of the same weights multiplied by torch in float32, and how far another dtype alone moves them.

    Both are those of a copy of ``blocks`` blocks.
    """

    exact: torch.Tensor
    rounding: float
    blocks: int

    @classmethod
    def of(cls, load: Callable[[str], Any], dtype: str, family: str, prompt: Prompt) -> PlainOutputs:
        """Compare ``dtype`` with float32; ``load`` returns the model, whole or shortened, in a dtype."""
        model = load("float32")
        blocks = shorten(model)
        exact = outputs(model.to(prompt.ids.device), family, prompt)
        del model  # one at a time is in memory
        rounded = load(dtype)
        shorten(rounded)
        return cls(exact, distance(outputs(rounded.to(prompt.ids.device), family, prompt), exact), blocks)

    def check(self, model: Any, family: str, prompt: Prompt, wrong: str) -> Parity:
        """Compare an engine's shortened ``model`` with it.

        Raises ParityError, with ``wrong`` in its hint, where the distance is above TOLERANCE plus ROUNDING times the
        one that the dtype makes.
        """
        parity = Parity(
            distance(outputs(model, family, prompt), self.exact),
            ROUNDING * self.rounding + TOLERANCE,
            dtype_name(getattr(model, "module", model).dtype),  # an engine's wrapper holds the model
            self.blocks,
            False,
        )
        return checked(parity, f"report the model's architecture: {wrong}")


def distance(output: torch.Tensor, plain: torch.Tensor) -> float:
    """Return ‖output - plain‖₂ / ‖plain‖₂; where ``plain`` is all zeros, 0 if ``output`` is too, else infinity.

    Raises ParityError where the shapes differ.
    """
    if output.shape != plain.shape:
        raise ParityError(
            f"the engine's output is {tuple(output.shape)} where the plain model's is {tuple(plain.shape)}"
        )
    away, size = float(torch.linalg.vector_norm(output - plain)), float(torch.linalg.vector_norm(plain))
    if size == 0:
        return math.inf if away else 0.0
    return away / size


def checked(parity: Parity, hint: str) -> Parity:
    """Return ``parity``. Raises ParityError where it is above its tolerance, or not a number."""
    if not parity.relative_l2 <= parity.tolerance:
        raise ParityError(
            f"the engine's output differs from the plain model's by {parity.relative_l2:.2e} (relative L2); "
            f"at most {parity.tolerance:.2e} is allowed",
            hint,
        )
    return parity


def outputs(model: Any, family: str, prompt: Prompt) -> torch.Tensor:
    """Return the outputs of ``model`` for PARITY_TOKENS tokens at once, for a few and for one, as one flat float32 tensor.

    Kernels that skip zeros have another way for each of the three.
    """
    with torch.inference_mode():
        parts = [_output(model, family, prompt, tokens).reshape(-1) for tokens in (PARITY_TOKENS, SHORT_TOKENS, 1)]
    return torch.cat(parts)


def _output(model: Any, family: str, prompt: Prompt, tokens: int = PARITY_TOKENS) -> torch.Tensor:
    """Return the logits (batch, tokens, vocabulary), or an encoder's last hidden state, as float32 on the CPU.

    As in decoding, the last token's logits are computed with the cache of the others.
    """
    ids, mask = prompt.ids[:, :tokens], prompt.mask[:, :tokens]
    if family == "encoder":
        out = model(input_ids=ids, attention_mask=mask)
        return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float().cpu()
    module = getattr(model, "module", model)
    is_encoder_decoder, decoder_ids = family == "encoder-decoder", ids
    if is_encoder_decoder:
        decoder_ids = ids[:, :8].clone()
        decoder_ids[:, :1] = start_token(module.config)

    def decode(start: int, stop: int, **settings: Any) -> Any:
        """Run the decoder's tokens from ``start`` to ``stop``; its mask is as long as what it has read by then."""
        part = decoder_ids[:, start:stop]
        if is_encoder_decoder:
            return model(input_ids=ids, decoder_input_ids=part, attention_mask=mask, **settings)
        return model(input_ids=part, attention_mask=mask[:, :stop], **settings)

    length = decoder_ids.shape[1]
    if length == 1:
        return decode(0, 1, use_cache=False).logits.float().cpu()
    name = cache_name(module)
    first = decode(0, length - 1, use_cache=True)
    last = decode(length - 1, length, use_cache=True, **{name: first[name]})
    return torch.cat([first.logits, last.logits], 1).float().cpu()
