"""How many tokens go through the model to measure a cell: a function for each stage that does more than read weights."""

from __future__ import annotations

from sparsebench.benchmarks import benchmark_of
from sparsebench.plan.cells import Cell

DOCUMENTS, PROMPT = 2000, 40
"""Documents of a benchmark, and tokens of a document, where these are not known."""
READINGS = 2
"""How often models other than decoders read a document: in parts, once for each answer, or with masks."""
NEW_TOKEN = 10
"""A generated token takes as long as this many of a prompt: each of them reads all weights."""
STEPS = 8
"""The steps in which a process times a phase of a pair, warm-up included."""


def compared_tokens(cell: Cell) -> float:
    """Return the tokens of comparing a variant's outputs with the dense model's."""
    return float(3 * cell.settings["samples"] * cell.settings["length"])


def scored_tokens(cell: Cell) -> float:
    """Return the tokens of scoring a variant on a benchmark."""
    return 0.0 if cell.variant.heuristic else (document_count(cell) or DOCUMENTS) * _document_tokens(cell)


def timed_tokens(cell: Cell) -> float:
    """Return the tokens of timing a variant beside the dense model."""
    load = cell.settings["workload"]
    request = load["batch"] * (2 * load["prompt"] + (load["generate"] + 1) * NEW_TOKEN)
    return float(STEPS * cell.settings["processes"] * request)


def document_count(cell: Cell) -> int | None:
    """Return how many documents a benchmark cell scores; None where that is not known before the run."""
    benchmark, limit = benchmark_of(cell.settings), cell.settings.get("limit")
    if benchmark is None:
        return limit
    whole = benchmark.n or cell.documents
    counts = [whole, limit * benchmark.parts if limit else 0]
    return min(filter(None, counts), default=None)


def _document_tokens(cell: Cell) -> int:
    """Return the tokens that are read of a document, its few-shot examples and its answers."""
    readings = 1 if cell.variant.family == "decoder" else READINGS
    shown = 1 + (cell.settings.get("num_fewshot") or 0)
    benchmark = benchmark_of(cell.settings)
    if benchmark is None:
        return readings * PROMPT * shown
    window = benchmark.tokens or 0
    if benchmark.adapter == "pseudo_perplexity":
        return window * window  # each token is masked once
    if window and benchmark.adapter != "generation":
        return window
    return readings * (benchmark.prompt or PROMPT) * shown + NEW_TOKEN * window
