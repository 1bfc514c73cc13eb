"""A workload's token ids and its phases: what is timed, one step at a time.

encoder: forward. decoder: prefill, decode, generate. encoder-decoder: encode, prefill, decode, generate.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from sparsebench.models.files.families import cache_name, text_config
from sparsebench.runtime.results import Workload

SEED = 0
"""Every variant answers the same prompts."""
SPECIAL_IDS = (
    "pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "sep_token_id", "cls_token_id", "mask_token_id",
    "decoder_start_token_id",
)  # fmt: skip


class Phase:
    """One phase to time, such as prefill."""

    name: str
    cache: Any = ()
    """The keys and values, or states, that are kept between tokens; None before the first step, and where the model keeps
    them to itself."""

    def begin(self) -> None:
        """Bring the state to where a block of steps may start; not timed."""

    def step(self) -> None:
        """Do the work that is timed."""
        raise NotImplementedError

    def end(self) -> None:
        """Drop what no later phase needs."""


@dataclass
class Prompt:
    """The prompt on the device: ids and a mask of ones, both (batch, prompt) int64."""

    ids: torch.Tensor
    mask: torch.Tensor


def draw_prompt(config: Mapping[str, Any], workload: Workload, device: str = "cpu") -> Prompt:
    """Draw seeded tokens from the vocabulary, without special ones.

    They are the same for every model of one vocabulary. Padding would change masks and positions, an end token the
    length.
    """
    text_settings = text_config(config)
    special: set[Any] = set()
    for key in SPECIAL_IDS:
        entry = text_settings.get(key)
        special.update(entry if isinstance(entry, list) else [entry])  # end tokens may be several
    generator = random.Random(SEED)
    allowed = [id_ for id_ in range(text_settings["vocab_size"]) if id_ not in special]
    rows = [generator.choices(allowed, k=workload.prompt) for _ in range(workload.batch)]
    ids = torch.tensor(rows, dtype=torch.int64, device=device)
    return Prompt(ids, torch.ones_like(ids))


class Forward(Phase):
    """The whole forward pass of an encoder."""

    name = "forward"

    def __init__(self, model: Any, prompt: Prompt) -> None:
        self.model, self.prompt = model, prompt

    def step(self) -> None:
        self.model(input_ids=self.prompt.ids, attention_mask=self.prompt.mask)


class Encode(Phase):
    """The encoder's pass in an encoder-decoder; keeps its output for the prefill."""

    name = "encode"

    def __init__(self, model: Any, prompt: Prompt) -> None:
        self.encoder, self.prompt = model.get_encoder(), prompt
        self.output: Any = None

    def step(self) -> None:
        self.output = self.encoder(input_ids=self.prompt.ids, attention_mask=self.prompt.mask, return_dict=True)


class Prefill(Phase):
    """The prompt up to the first new token (TTFT; in an encoder-decoder without the encoder's share)."""

    name = "prefill"

    def __init__(self, model: Any, prompt: Prompt, encode: Encode | None = None) -> None:
        self.model, self.prompt, self.encode = model, prompt, encode
        self.cache = None
        self.next_token: Any = None
        parameters = inspect.signature(model.module.forward).parameters
        self.cache_name = cache_name(model.module)
        self.arguments: dict[str, Any] = {"use_cache": True}
        if "logits_to_keep" in parameters:
            self.arguments["logits_to_keep"] = 1  # as `generate` does
        # The decoder's first token.
        self.start = torch.full_like(prompt.ids[:, :1], start_token(model.module.config)) if encode else None

    def begin(self) -> None:
        """Run the encoder where it has not run yet; that is not timed here."""
        if self.encode and self.encode.output is None:
            self.encode.step()

    def step(self) -> None:
        """Run the whole prompt in one forward pass with an empty cache; keep the first new token and the cache."""
        ids = self.start if self.encode else self.prompt.ids
        self.next_token, self.cache = self.forward(ids, self.prompt.mask, self.arguments)

    def forward(self, ids: Any, mask: torch.Tensor, arguments: Mapping[str, Any]) -> tuple[Any, Any]:
        """Give the decoder the tokens ``ids``; return the next token of each sequence (batch, 1) and the cache."""
        decoder_inputs: dict[str, Any] = {"input_ids": ids}
        if self.encode:
            decoder_inputs = {"encoder_outputs": self.encode.output, "decoder_input_ids": ids}
        out = self.model(**decoder_inputs, attention_mask=mask, **arguments)
        return out.logits[:, -1:].argmax(-1), out[self.cache_name]


class Decode(Phase):
    """One new token with the prompt in the cache (TPOT); every block starts again at the end of the prompt."""

    name = "decode"

    def __init__(self, prefill: Prefill, keep_cache: bool) -> None:
        self.prefill, self.keep_cache = prefill, keep_cache
        self.cache = None
        self.next_token: Any = None
        self.mask = prefill.prompt.mask

    def begin(self) -> None:
        """Go back to the end of the prompt, with a copy of its cache, or, without ``keep_cache``, the cache itself."""
        if self.prefill.cache is None:
            self.prefill.begin()
            self.prefill.step()
        # A copy, not a crop: sliding-window caches cannot be cropped.
        self.cache = copy.deepcopy(self.prefill.cache) if self.keep_cache else self.prefill.cache
        self.next_token = self.prefill.next_token
        self.mask = self.prefill.prompt.mask

    def step(self) -> None:
        """Decode one token and append it to the cache, so that each step of a block reads one position more."""
        if not self.prefill.encode:
            self.mask = self.mask.new_ones((self.mask.shape[0], self.mask.shape[1] + 1))
        arguments = {**self.prefill.arguments, self.prefill.cache_name: self.cache}
        self.next_token, self.cache = self.prefill.forward(self.next_token, self.mask, arguments)

    def end(self) -> None:
        self.cache = self.prefill.cache = None


class Generate(Phase):
    """A whole greedy generation of exactly ``tokens`` new tokens by the model's ``generate``."""

    name = "generate"
    cache = None

    def __init__(self, model: Any, prompt: Prompt, tokens: int) -> None:
        self.model, self.prompt = model, prompt
        module = model.module
        start = start_token(module.config) if module.config.is_encoder_decoder else None
        # The model's own configuration would fill what the one below leaves open, such as an end token.
        module.generation_config = GenerationConfig(decoder_start_token_id=start)
        self.config = GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=0,
            decoder_start_token_id=start,
        )

    def step(self) -> None:
        self.model.generate(input_ids=self.prompt.ids, attention_mask=self.prompt.mask, generation_config=self.config)


def phases(model: Any, family: str, prompt: Prompt, generate: int, keep_cache: bool = True) -> Sequence[Phase]:
    """Return the phases of ``family`` for a wrapped model, in the order in which they feed each other.

    Without ``keep_cache`` decoding continues the prompt's cache itself, once, instead of a fresh copy per block. A model
    that is not transformers' has ``phases`` of its own.
    """
    if own_phases := getattr(model, "phases", None):
        return own_phases(prompt, generate)
    if family == "encoder":
        return [Forward(model, prompt)]
    encode = [Encode(model, prompt)] if family == "encoder-decoder" else []
    prefill = Prefill(model, prompt, *encode)
    return [*encode, prefill, Decode(prefill, keep_cache), Generate(model, prompt, generate)]


def start_token(config: Any) -> int:
    """Return the decoder's first token. T5 and BART name it; where it is missing it is the padding token, as in T5."""
    start = getattr(config, "decoder_start_token_id", None)
    return start if start is not None else (config.pad_token_id or 0)
