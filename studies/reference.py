"""The published procedure, written the straightforward way, to compare with: quality, speed and memory.

    python studies/reference.py FOLDER OUT --method sparsegpt --sparsity 0.5 [--pattern 2:4] [--samples 64] [--length 512]

The whole model is in memory in float32. Each block in turn: every linear layer gathers its own statistics from the
dense block behind pruned predecessors, is pruned by itself, and the block runs again. Decoders of the Llama kind only.
Shared with the product are the calibration tokens, nothing else.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsebench import sources
from sparsebench.manifest.schema import ManifestCalibration
from sparsebench.plan.expand import with_defaults
from sparsebench.steps.calibration import tokens

BLOCK = 128
DAMPING = 0.01


class Stop(Exception):
    """Ends a forward pass once the first block's inputs are known."""


def first_inputs(model: Any, ids: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """What the first block is given for each sample."""
    caught: list[torch.Tensor] = []
    given: dict[str, Any] = {}

    def catch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught.append(args[0])
        given.update(kwargs)
        raise Stop

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in ids:
        try:
            model(row[None], use_cache=False)
        except Stop:
            pass
    hook.remove()
    return caught, given


def gather(
    block: Any, linears: dict[str, Any], hidden: list[torch.Tensor], given: dict[str, Any], whole: bool
) -> dict[str, torch.Tensor]:
    """H = 2/n Σ x xᵀ of every linear layer, each by itself; ‖x_j‖² alone where not the ``whole`` of it is wanted."""
    sums = {name: torch.zeros(*[linear.in_features] * (2 if whole else 1)) for name, linear in linears.items()}

    def add(name: str) -> Any:
        def hook(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            rows = args[0].reshape(-1, args[0].shape[-1])
            sums[name] += 2 / len(hidden) * rows.T @ rows if whole else rows.norm(dim=0) ** 2

        return hook

    hooks = [linear.register_forward_hook(add(name)) for name, linear in linears.items()]
    for states in hidden:
        block(states, **given)
    for hook in hooks:
        hook.remove()
    return sums


def lowest_of_groups(scores: torch.Tensor, keep: int, group: int) -> torch.Tensor:
    """Mask of the group − keep lowest scores of each group of columns."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, scores.shape[1], group):
        part = scores[:, start : start + group]
        mask.scatter_(1, start + part.topk(group - keep, dim=1, largest=False)[1], True)
    return mask


def wanda(weights: torch.Tensor, squares: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """|w|·‖x‖, the lowest of each row go."""
    scores = weights.abs() * squares.sqrt()
    if pattern:
        keep, group = map(int, pattern.split(":"))
        return weights.masked_fill(lowest_of_groups(scores, keep, group), 0)
    order = scores.sort(dim=1, stable=True)[1]
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask.scatter_(1, order[:, : int(weights.shape[1] * sparsity)], True)
    return weights.masked_fill(mask, 0)


def sparsegpt(weights: torch.Tensor, hessian: torch.Tensor, sparsity: float, pattern: str) -> torch.Tensor:
    """Column by column, in blocks of 128."""
    weights, hessian = weights.clone(), hessian.clone()
    dead = hessian.diag() == 0
    hessian[dead, dead] = 1
    weights[:, dead] = 0
    hessian.diagonal().add_(DAMPING * hessian.diag().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    keep, group = map(int, pattern.split(":")) if pattern else (0, 0)
    for start in range(0, weights.shape[1], BLOCK):
        end = min(start + BLOCK, weights.shape[1])
        part, inverse = weights[:, start:end].clone(), upper[start:end, start:end]
        errors = torch.zeros_like(part)
        mask = torch.zeros_like(part, dtype=torch.bool)
        if not pattern:
            scores = part**2 / inverse.diag() ** 2
            limit = scores.flatten().sort()[0][int(scores.numel() * sparsity)]
            mask = scores <= limit
        for j in range(end - start):
            if pattern and j % group == 0:
                scores = part[:, j : j + group] ** 2 / inverse.diag()[j : j + group] ** 2
                mask.scatter_(1, j + scores.topk(group - keep, dim=1, largest=False)[1], True)
            kept = part[:, j].masked_fill(mask[:, j], 0)
            errors[:, j] = (part[:, j] - kept) / inverse[j, j]
            part[:, j:] -= errors[:, j : j + 1] @ inverse[j : j + 1, j:]
            part[:, j] = kept
        weights[:, start:end] = part
        weights[:, end:] -= errors @ upper[start:end, end:]
    return weights


def magnitude(weights: torch.Tensor, sparsity: float) -> torch.Tensor:
    """|w|, the lowest of the matrix go."""
    order = weights.abs().flatten().sort(stable=True)[1][: round(weights.numel() * sparsity)]
    pruned = weights.flatten().clone()
    pruned[order] = 0
    return pruned.view_as(weights)


@torch.no_grad()
def prune(model: Any, ids: torch.Tensor, method: str, sparsity: float, pattern: str) -> None:
    """Prune ``model`` in place, block after block."""
    hidden, given = first_inputs(model, ids)
    for block in model.model.layers:
        linears = {name: part for name, part in block.named_modules() if isinstance(part, torch.nn.Linear)}
        if method == "magnitude":
            for linear in linears.values():
                linear.weight.data = magnitude(linear.weight.data, sparsity)
            continue
        way = sparsegpt if method == "sparsegpt" else wanda
        found = gather(block, linears, hidden, given, whole=way is sparsegpt)
        for name, linear in linears.items():
            linear.weight.data = way(linear.weight.data, found[name], sparsity, pattern)
        hidden = [block(states, **given) for states in hidden]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", default="")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of the passages drawn")
    asked = parser.parse_args()
    started = time.perf_counter()
    calibration = with_defaults(ManifestCalibration(samples=asked.samples, length=asked.length), asked.seed)
    ids = tokens(asked.folder, "decoder", calibration, sources.Cache()).batch.input_ids
    model = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=torch.float32).eval()
    prune(model, ids, asked.method, asked.sparsity, asked.pattern)
    model.save_pretrained(asked.out)
    AutoTokenizer.from_pretrained(asked.folder).save_pretrained(asked.out)
    print(f"{asked.method} {asked.pattern or asked.sparsity}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
