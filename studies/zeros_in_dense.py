"""Does a dense product take as long for zeros as for any number? It should, but the processor's clock may follow the power.

    python studies/zeros_in_dense.py [--threads 1] [--rounds 60]

60 matrices of SmolLM2's feed-forward shape times 128 tokens in bfloat16, by torch. All versions are copied in turn into
the same memory, in alternating order, so that nothing but the values differs; `again` is a second copy of the dense one.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

MATRICES, ROWS, COLUMNS, TOKENS, STEPS = 60, 1536, 576, 128, 10


def versions() -> dict[str, list[torch.Tensor]]:
    """The matrices, dense and without their smallest weights."""
    generator = torch.Generator().manual_seed(0)
    dense = [torch.randn(ROWS, COLUMNS, generator=generator).bfloat16() for _ in range(MATRICES)]
    found = {"dense": dense, "again": dense}
    for sparsity in (0.5, 0.9, 0.99):
        limits = [weights.abs().float().quantile(sparsity) for weights in dense]
        found[f"{sparsity:.0%}"] = [
            weights.masked_fill(weights.abs() < limit, 0) for weights, limit in zip(dense, limits, strict=True)
        ]
    return found


def main() -> None:
    """Time, and print the medians of the ratios with the bounds between which four in five lie."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    made = versions()
    place = [torch.empty_like(weights) for weights in made["dense"]]
    tokens = torch.randn(TOKENS, COLUMNS, generator=torch.Generator().manual_seed(1)).bfloat16()

    def step() -> float:
        started = time.perf_counter()
        for weights in place:
            torch.nn.functional.linear(tokens, weights)
        return time.perf_counter() - started

    times: dict[str, list[float]] = {name: [] for name in made}
    with torch.inference_mode():
        for number in range(asked.rounds):
            for name in sorted(made, reverse=bool(number % 2)):
                for target, weights in zip(place, made[name], strict=True):
                    target.copy_(weights)
                step()
                times[name].append(median(step() for _ in range(STEPS)))
    for name, taken in times.items():
        ratios = sorted(dense / own for dense, own in zip(times["dense"], taken, strict=True))
        low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
        print(f"{name}: {median(taken) * 1e3:.2f} ms, {median(ratios):.3f} times as fast [{low:.3f}, {high:.3f}]")


if __name__ == "__main__":
    main()
