"""Decoding on a GPU with one CUDA graph per token, over a static cache, whose tensors keep their addresses.

An eager step launches hundreds of kernels: a small or very sparse model then waits for its launches, and no kernel can
show a gain. Nobody has run this on a GPU yet; on a CPU the same steps are compared with eager ones, token by token.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from sparsebench.errors import first_line, out_of_memory
from sparsebench.runtime.parity import distance
from sparsebench.runtime.workload import Decode, Phase, Prefill

WARM_STEPS = 3
"""Warm-up steps on a side stream before the step is recorded, as torch requires."""
GRAPH = "one CUDA graph a token"
Capture = Callable[[Callable[[], None], Callable[[], None]], Callable[[], None]]
"""A function that records: takes a step and the function that undoes it, and returns one that repeats the step."""


def cuda_graph(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
    """Record ``step`` as a CUDA graph; return its replay. Raises RuntimeError where it reads a value from the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_STEPS):
            step()
            undo()
    current = torch.cuda.current_stream()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError:
        torch.cuda.set_stream(current)  # torch does not do this after an aborted recording
        raise
    return graph.replay


def with_recorded_decoding(
    phases: Sequence[Phase], tokens: int, ranks: int, capture: Capture = cuda_graph
) -> list[Phase]:
    """Return ``phases`` with each ``Decode`` as a ``CapturedDecode`` of at most ``tokens`` tokens after the prompt."""
    return [
        CapturedDecode(phase.prefill, tokens, ranks, capture) if isinstance(phase, Decode) else phase
        for phase in phases
    ]


def match_decode_modes(sides: Iterable[Sequence[Phase]]) -> None:
    """Record the decode steps of all models that are compared; where one cannot be recorded, none is replayed.

    A replay beside an eager step would show the launches that it saves as the variant's gain or loss.
    """
    decodes = [phase for phases in sides for phase in phases if isinstance(phase, CapturedDecode)]
    for decode in decodes:
        decode.prepare()
    reason = next((decode.own_reason for decode in decodes if decode.own_reason), "")
    for decode in decodes:
        decode.others_reason = reason


def decode_mode(phases: Sequence[Phase]) -> str:
    """Return how decoding ran, for a result's ``kernel``; "" without a phase that ``with_recorded_decoding`` made."""
    return next((f"decode: {phase.mode}" for phase in phases if isinstance(phase, CapturedDecode)), "")


def capture_refusal(module: Any, ranks: int) -> str:
    """Return why decoding by ``module`` cannot be recorded; "" where it can."""
    if ranks > 1:
        return "several ranks"
    if any(hasattr(parameter, "ds_id") for parameter in module.parameters()):
        return "ZeRO-3 gathers its parameters"
    if not getattr(module, "_can_compile_fullgraph", False):
        return "transformers has no static cache for this architecture"
    if any(type(layer).__name__ != "StaticLayer" for layer in static_cache(module, 1).layers):
        return "its cache slides"
    return ""


def static_cache(module: Any, tokens: int) -> Any:
    """Return an empty static cache of keys and values for ``tokens`` tokens."""
    return StaticCache(config=module.config, max_cache_len=tokens)


class CapturedDecode(Decode):
    """``Decode`` of at most ``tokens`` tokens after the prompt, each a replay of one recorded step.

    With a reason in ``own_reason``, or in ``others_reason`` that of a model that it is compared with, it decodes
    eagerly. The recorded step reads and writes the same tensors each time: the last token and its position, both
    (batch, 1) int64, the cache, and the logits (batch, 1, vocabulary). A block starts by copying back what they held
    after the prompt.
    """

    def __init__(self, prefill: Prefill, tokens: int, ranks: int = 1, capture: Capture = cuda_graph) -> None:
        super().__init__(prefill, keep_cache=True)
        self.tokens, self.capture = tokens, capture
        self.own_reason, self.others_reason = capture_refusal(prefill.model.module, ranks), ""
        self.replay: Callable[[], None] | None = None
        self.recorded_step: Callable[[], None] | None = None
        self.state_after_prompt: list[tuple[Any, Any]] = []
        self.token: Any = None

    @property
    def mode(self) -> str:
        """How it decodes: recorded, or eager and why."""
        why = self.own_reason or self.others_reason
        return f"eager ({why})" if why else GRAPH

    def prepare(self) -> None:
        """Record the step, once; where that fails, ``own_reason`` says why. Raises RuntimeError when out of memory."""
        if not self.replay and not self.own_reason:
            try:
                self.replay = self._record_step()
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self.own_reason = f"not recorded: {first_line(error)}"
                self.recorded_step, self.state_after_prompt = None, []

    def begin(self) -> None:
        """Go back to the end of the prompt; the first call records the step. Raises RuntimeError when out of memory."""
        self.prepare()
        if self.own_reason or self.others_reason:
            super().begin()
        else:
            self._undo()
            self.next_token = self.token

    def step(self) -> None:
        (super().step if self.own_reason or self.others_reason or not self.replay else self.replay)()

    def end(self) -> None:
        self.replay, self.recorded_step, self.state_after_prompt = None, None, []
        super().end()

    def _record_step(self) -> Callable[[], None]:
        prefill, prompt = self.prefill, self.prefill.prompt
        module = prefill.model.module
        arguments, prefix = dict(prefill.arguments), ""
        ids: Any = prompt.ids
        if prefill.encode:
            prefill.begin()
            ids, prefix = prefill.start, "decoder_"
            cache = static_cache(module, 1 + self.tokens)
            arguments[prefill.cache_name] = EncoderDecoderCache(cache, DynamicCache())
            # No mask for the prompt, which has no padding: transformers would ask the GPU whether it is all ones.
            arguments["encoder_outputs"] = prefill.encode.output
        else:
            cache = arguments[prefill.cache_name] = static_cache(module, ids.shape[1] + self.tokens)
        # The mask covers all positions from the start: a growing mask would be another tensor each time.
        arguments[f"{prefix}attention_mask"] = ids.new_ones((ids.shape[0], ids.shape[1] + self.tokens))
        takes_positions = "position_ids" in inspect.signature(module.forward).parameters

        def last_logits(ids: Any, positions: Any) -> Any:
            position_argument = {"position_ids": positions} if takes_positions else {}
            return prefill.model(**{f"{prefix}input_ids": ids}, **position_argument, **arguments).logits[:, -1:]

        logits = last_logits(ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids)).clone()
        token = self.token = logits.argmax(-1)
        position = torch.full_like(token, ids.shape[1])

        def step() -> None:
            logits.copy_(last_logits(token, position))
            token.copy_(logits.argmax(-1))
            position.add_(1)

        self.state_after_prompt = [(tensor, tensor.clone()) for tensor in (token, position, *_state_tensors(cache))]
        step()
        eager = logits.clone()
        self._undo()
        # Kept alive: a graph has only addresses, and the step's tensors (mask, logits) would be freed with it.
        self.recorded_step = step
        replay = self.capture(step, self._undo)
        self._undo()
        logits.zero_()
        replay()
        # Not compared bit for bit: cuBLAS may choose another algorithm while recording, and every model would be eager.
        # In the tests' models on a CPU, other rounding moves bfloat16 logits by at most 0.4%, a wrong token or position
        # by 7%.
        if distance(logits, eager) > max(1e-4, 4 * torch.finfo(logits.dtype).eps):
            raise RuntimeError("the recorded step does not give the logits of the eager one")
        return replay

    def _undo(self) -> None:
        for tensor, saved in self.state_after_prompt:
            tensor.copy_(saved)


def _state_tensors(cache: Any) -> Iterator[Any]:
    """Yield the tensors in which a static cache keeps its state."""
    for layer in cache.layers:
        yield from (layer.keys, layer.values, layer.cumulative_length)
