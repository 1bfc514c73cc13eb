"""Inputs with common prefixes: a token is computed once for all inputs that have the same tokens up to it.

A batch of inputs is a tree of tokens. What a decoder does to one token at a time (projections, MLPs, norms: most of the
work) runs over the tree's nodes, in one row without padding. Only attention runs per input, on the queries, keys and
values along its path, in the kernel that the model always uses. It sees what it would see without the tree.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sparsebench.errors import UnsupportedError

TokenIds = tuple[int, ...]
"""One input's tokens."""

NODES = 512
"""Nodes per forward pass. On two cores 256 to 512 are fastest: fewer leave cores idle, more exceed the CPU cache."""
_ALIKE = 0.25
"""Inputs that share this part of their tokens stay together. A lower share would mix inputs of different
lengths, and attention is padded to the longest."""
_ATTENTION = "sparsebench_prefixes"


def shared_length(first: TokenIds, second: TokenIds) -> int:
    """Return how many tokens two inputs have in common from their beginning."""
    for count, (first_token, second_token) in enumerate(zip(first, second, strict=False)):
        if first_token != second_token:
            return count
    return min(len(first), len(second))


def tree_batches(rows: Iterable[TokenIds], most_nodes: int, wanted_nodes: int) -> list[list[TokenIds]]:
    """Group distinct inputs into batches, long inputs first, of at most ``most_nodes`` nodes unless it is a single input.

    A batch has up to ``wanted_nodes`` nodes, or twice its longest input's if that is more, so that several inputs share
    a long prompt's beginning.
    """
    families: list[list[TokenIds]] = []
    for row in sorted(rows):
        if families and shared_length(families[-1][-1], row) >= _ALIKE * len(row):
            families[-1].append(row)
        else:
            families.append([row])
    families.sort(key=lambda family: -max(map(len, family)))
    batches: list[list[TokenIds]] = []
    nodes = longest = 0
    for row in (row for family in families for row in family):
        new_nodes = len(row) - (shared_length(batches[-1][-1], row) if batches else 0)
        longest = max(longest, len(row))
        if not batches or nodes + new_nodes > min(max(wanted_nodes, 2 * longest), most_nodes):
            batches.append([])
            nodes, longest, new_nodes = 0, len(row), len(row)
        batches[-1].append(row)
        nodes += new_nodes
    return batches


@dataclass(frozen=True)
class _Call:
    """Inputs that attend in one call of the kernel: the nodes of queries and of keys, int64, one row per input.

    ``mask`` is added to the scores, (inputs, 1, queries, keys) float32; None if both are whole paths.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    mask: torch.Tensor | None


class Tree:
    """A batch as a tree. ``tokens`` and ``positions`` are (1, nodes) int64 on ``device``.

    ``paths`` are each input's nodes, in order.
    An input shares its beginning only with the input before it, so sorted inputs make the smallest tree.
    """

    def __init__(self, rows: Sequence[TokenIds], device: torch.device | str = "cpu") -> None:
        tokens: list[int] = []
        positions: list[int] = []
        branches: list[tuple[list[int], int]] = []
        path: list[int] = []
        before: TokenIds = ()
        for row in rows:
            begin = shared_length(before, row)
            path = [*path[:begin], *range(len(tokens), len(tokens) + len(row) - begin)]
            tokens += row[begin:]
            positions += range(begin, len(row))
            branches.append((path, begin))
            before = row
        self.tokens = torch.tensor([tokens], device=device)
        self.positions = torch.tensor([positions], device=device)
        self.paths = [path for path, _ in branches]
        self.attended_layers = 0
        """The number of layers that have attended so far."""
        # An input that shares at most half of its tokens attends as a whole: no mask, and the kernel stops at the
        # diagonal.
        unshared = [(path, 0) for path, begin in branches if 2 * begin <= len(path)]
        shared_tails = [(path, begin) for path, begin in branches if len(path) > begin > len(path) / 2]
        groups = [group for group in (unshared, shared_tails) if group]
        self._calls = [_call(group, device) for group in groups]
        outputs = [0] * len(tokens)
        start = 0
        for call, group in zip(self._calls, groups, strict=True):
            for path, begin in group:
                for output_row, node in enumerate(path[begin:], start):
                    outputs[node] = output_row
                start += call.queries.shape[1]
        self._outputs = torch.tensor(outputs, device=device)

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """Compute attention, as transformers' interface: (1, heads, nodes, width) each to (1, nodes, heads, width).

        Raises UnsupportedError for a mask or bias, and unless there is one query, key and value per node.
        """
        if attention_mask is not None or options.get("position_bias") is not None:
            raise UnsupportedError("its attention has a mask or bias of its own")
        if {part.shape[0] * part.shape[2] for part in (query, key, value)} != {self.tokens.numel()}:
            raise UnsupportedError("its attention does not see one query, key and value a token")
        self.attended_layers += 1
        outputs = []
        for call in self._calls:
            states = [_gather(query, call.queries), _gather(key, call.keys), _gather(value, call.keys)]
            mask = None if call.mask is None else call.mask.to(query.dtype)
            output, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, *states, mask, **options)
            outputs.append(output.flatten(0, 1))
        return torch.cat(outputs).index_select(0, self._outputs).unsqueeze(0), None


def _call(branches: list[tuple[list[int], int]], device: torch.device | str) -> _Call:
    """Return the call in which every path attends from position ``begin`` on. Rows are padded with their first node."""
    keys = _padded([path for path, _ in branches], device)
    if not any(begin for _, begin in branches):
        return _Call(keys, keys, None)
    begins = torch.tensor([begin for _, begin in branches], device=device)
    queries = _padded([path[begin:] for path, begin in branches], device)
    last = begins[:, None] + torch.arange(queries.shape[1], device=device)
    is_hidden = torch.arange(keys.shape[1], device=device) > last[:, :, None]
    mask = torch.zeros(is_hidden.shape, device=device).masked_fill(is_hidden, -torch.inf)[:, None]
    return _Call(queries, keys, mask)


def _padded(rows: list[list[int]], device: torch.device | str) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + row[:1] * (width - len(row)) for row in rows], device=device)


def _gather(states: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    """Gather (1, heads, all nodes, width) by (inputs, nodes) into (inputs, heads, nodes, width)."""
    return states[0].index_select(1, nodes.flatten()).unflatten(1, nodes.shape).transpose(0, 1)


def tree_problem(model: Any) -> str | None:
    """Return why the model cannot compute a tree, as far as its class and configuration tell; None if it may."""
    kernel = model.config.get_text_config(decoder=True)._attn_implementation
    if kernel != "sdpa":
        return f"its attention is {kernel}, not sdpa"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return f"{type(model).__name__} takes no position_ids"
    return None


def longest_without_window(model: Any) -> int | None:
    """Return the longest input, in tokens, whose beginning no layer forgets; None: any.

    transformers applies a window by a mask, which it makes from ``window`` tokens on. It makes none for the attention
    of ``tree_logits``, which would therefore ignore the window.
    """
    config = model.config.get_text_config(decoder=True)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((window - 1 for window in windows if window), default=None)


def tree_logits(model: Any, tree: Tree) -> torch.Tensor:
    """Return the model's logits at the tree's nodes, (1, nodes, vocabulary), unless a hook at its head keeps fewer.

    Raises UnsupportedError if a layer does not attend through transformers' attention interface.
    """
    config = model.config.get_text_config(decoder=True)
    usual_attention = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS[_ATTENTION] = tree.attend
    config._attn_implementation = _ATTENTION
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(tree.tokens, position_ids=tree.positions, use_cache=False).logits
    finally:
        config._attn_implementation = usual_attention
        del ALL_ATTENTION_FUNCTIONS[_ATTENTION]
    if tree.attended_layers != config.num_hidden_layers:
        raise UnsupportedError(
            f"{tree.attended_layers} of its {config.num_hidden_layers} layers attend through transformers' interface"
        )
    return logits
