"""An engine's output against the plain model's, in float32, on a copy with few blocks of true width.

Also what an error means that comes while a model runs: out of memory, the echo of another rank's end, or neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ParityError, UnsupportedError
from sparsebench.models.load import cache_name
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt, start_token

if TYPE_CHECKING:
    import torch


BLOCKS = 4
TOKENS = 32
TOLERANCE = 1e-4
ROUNDING = 2.0
"""How much further than the plain model in the same dtype an engine with kernels of its own may be from that model in float32,
besides TOLERANCE: both keep the same weights and round the same activations, in another order, and values beside a threshold may
fall on its other side in either. A wrong kernel, scale or zero point is further off by an order."""
COUNTS = "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers".split()
LISTS = ("layer_types", "attention_layers", "mlp_layer_types", "no_rope_layers")
MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", "out of memory")
"""How torch, its allocators and the system say it."""
ECHOES = ("closed by peer", "reset by peer", "broken pipe", "connect failure", "connection refused", "recvvalue failed")
"""How gloo and torch's store say that another rank is gone."""


def shorten(model: Any, blocks: int = BLOCKS) -> int:
    """Cut every stack of transformer blocks of ``model`` to its first ``blocks``, in place; returns the longest length.

    A stack is the outermost ModuleList that is as long as one of the configuration's layer counts.
    """
    from torch import nn

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
            # Some derive the list from the counts: it is short already.
            if isinstance(getattr(config, name, None), list) and not isinstance(
                getattr(type(config), name, None), property
            ):
                setattr(config, name, getattr(config, name)[:blocks])
    return longest


def check_parity(model: Any, wrap: Callable[[Any], Any], family: str, prompt: Prompt, wraps_only: bool) -> Parity:
    """Run ``model`` (taken apart here) plain and as ``wrap`` makes it.

    Raises UnsupportedError when the engine's model does not run at all, ParityError above the tolerance.
    """
    import torch

    blocks = shorten(model)
    model = model.float().to(prompt.ids.device).eval()
    with torch.inference_mode():
        plain = _output(model, family, prompt)
        wrapped = wrap(model)  # in place of the plain one: two copies of a large vocabulary would not fit everywhere
        try:
            engine = _output(wrapped, family, prompt)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if not_the_models(error):
                raise
            reason = str(error).strip().splitlines()[:1]
            raise UnsupportedError(
                f"the engine's model does not run: {type(error).__name__}: {' '.join(reason)}"
            ) from error
    judged = Parity(distance(engine, plain), TOLERANCE, "float32", blocks, wraps_only)
    return checked(judged, "measure at one rank, or report the model's architecture")


Cut = Callable[[Any], None]
"""Takes all but the first few blocks from a model, in place."""


def beside_rounding(
    reference: Callable[[str, Cut], Any],
    dtype: str,
    engine: Callable[[Cut], Any],
    family: str,
    prompt: Prompt,
    wrong: str,
) -> Parity:
    """The model that ``engine`` makes against ``reference("float32", …)``: the same weights multiplied by torch; both are cut.

    Raises ParityError, with ``wrong`` among its words, above ROUNDING times what ``dtype`` alone does to the reference.
    """
    blocks = [BLOCKS]

    def cut(model: Any) -> None:
        blocks[0] = shorten(model)

    def said(name: str) -> torch.Tensor:
        return outputs(reference(name, cut).to(prompt.ids.device), family, prompt)

    exact = said("float32")
    rounding = distance(said(dtype), exact)
    model = engine(cut)
    found = Parity(
        distance(outputs(model, family, prompt), exact),
        ROUNDING * rounding + TOLERANCE,
        str(getattr(model, "module", model).dtype).removeprefix("torch."),  # an engine's own model stands in it
        blocks[0],
        False,
    )
    return checked(found, f"report the model's architecture: {wrong}")


def distance(found: torch.Tensor, plain: torch.Tensor) -> float:
    """‖found - plain‖₂ / ‖plain‖₂; of a model that says only zeros 0 where both do, else infinite.

    Raises ParityError where the shapes differ.
    """
    import torch

    if found.shape != plain.shape:
        raise ParityError(
            f"the engine's output is {tuple(found.shape)} where the plain model's is {tuple(plain.shape)}"
        )
    away, size = float(torch.linalg.vector_norm(found - plain)), float(torch.linalg.vector_norm(plain))
    if size == 0:
        return math.inf if away else 0.0
    return away / size


def checked(parity: Parity, hint: str) -> Parity:
    """``parity`` itself. Raises ParityError where it is over its tolerance, or not a number."""
    if not parity.relative_l2 <= parity.tolerance:
        raise ParityError(
            f"the engine's output is {parity.relative_l2:.1e} (relative L2) off the plain model's, "
            f"over {parity.tolerance:.0e}",
            hint,
        )
    return parity


def outputs(model: Any, family: str, prompt: Prompt) -> torch.Tensor:
    """What ``model`` says to ``TOKENS`` tokens at once and to one alone, in one flat tensor of float32."""
    import torch

    with torch.inference_mode():
        parts = [_output(model, family, prompt, tokens).reshape(-1) for tokens in (TOKENS, 1)]
    return torch.cat(parts)


def _output(model: Any, family: str, prompt: Prompt, tokens: int = TOKENS) -> torch.Tensor:
    """The logits (batch, tokens, vocabulary), the last token's by the cache of the others, as decoding has them; or an
    encoder's last hidden state. As float32 on the CPU.
    """
    import torch

    ids, mask = prompt.ids[:, :tokens], prompt.mask[:, :tokens]
    if family == "encoder":
        out = model(input_ids=ids, attention_mask=mask)
        hidden: torch.Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
        return hidden.float().cpu()
    module = getattr(model, "module", model)
    both, given = family == "encoder-decoder", ids
    if both:
        given = ids[:, :8].clone()
        given[:, :1] = start_token(module.config)

    def said(start: int, stop: int, **ways: Any) -> Any:
        """Of the decoder's tokens from ``start`` to ``stop``; its mask is as long as what it has read by then."""
        read = (
            {"input_ids": ids, "decoder_input_ids": given[:, start:stop]} if both else {"input_ids": ids[:, start:stop]}
        )
        return model(**read, attention_mask=mask if both else mask[:, :stop], **ways)

    length = given.shape[1]
    if length == 1:
        alone: torch.Tensor = said(0, 1, use_cache=False).logits
        return alone.float().cpu()
    name = cache_name(module)
    first = said(0, length - 1, use_cache=True)
    last = said(length - 1, length, use_cache=True, **{name: first[name]})
    return torch.cat([first.logits, last.logits], 1).float().cpu()


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was wanting, whoever asked for it."""
    return isinstance(error, MemoryError) or _says(error, MEMORY)


def on_gpu(error: BaseException) -> bool:
    """Whether the memory that was wanting is a GPU's."""
    return _says(error, ("cuda", "hip out of memory"))


def echo(error: BaseException) -> bool:
    """Whether it only says that another rank has ended."""
    return isinstance(error, ConnectionError) or _says(error, ECHOES)


def not_the_models(error: BaseException) -> bool:
    """Whether an error that came while a model ran says nothing about the model, or about the engine."""
    return out_of_memory(error) or echo(error)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in words)
