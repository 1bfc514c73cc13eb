"""One pass over a checkpoint makes every version of a method's sweep, tensor by tensor.

The weights are read once (twice or three times for a global threshold, which must be known before the first
tensor is written); at any moment one tensor is in memory, whatever the size of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.anatomy import Part, parts
from sparsebench.models.checkpoint import Checkpoint, CheckpointWriter
from sparsebench.sparsify import masks
from sparsebench.sparsify.contract import Score, SparsifyResult, Target, TensorSparsity
from sparsebench.sparsify.keys import Threshold, keys, thresholds
from sparsebench.sparsify.registry import methods

if TYPE_CHECKING:
    import torch

Emit = Callable[[Target, SparsifyResult], None]
Progress = Callable[[int, int], None]


class Sweep:
    """A method over one checkpoint: ``targets`` share a granularity; ``folders`` says where each version goes."""

    def __init__(self, dense: Path, family: str, method: str, folders: dict[Target, Path], seed: int) -> None:
        self.checkpoint = Checkpoint(dense)
        self.parts = parts(self.checkpoint, family)
        self.family = family
        self.method = method
        self.score: Score = methods()[method].load()
        self.folders = folders
        self.seed = seed
        if not any(part.prunable for part in self.parts.values()):
            raise ModelError(f"{dense}: no prunable weights found", "is the family right? see `sparsebench inspect`")

    def run(self, emit: Emit, progress: Progress | None = None) -> None:
        """Make every version, verify each from its files, and emit its result."""
        started = time.perf_counter()
        granularities = {target.granularity for target in self.folders}
        if len(granularities) != 1:
            raise ValueError(f"a sweep has one granularity, not {sorted(granularities)}")
        limits = self._global_thresholds() if granularities == {"global"} else {}
        layout = list(self.checkpoint.tensors.values())
        writers = {
            target: CheckpointWriter(folder, layout, self.checkpoint.companions)
            for target, folder in self.folders.items()
        }
        removed: dict[Target, int] = dict.fromkeys(writers, 0)
        notes: dict[Target, set[str]] = {target: set() for target in writers}
        try:
            for done, (info, tensor) in enumerate(self.checkpoint.items()):
                part = self._original(self.parts[info.name])
                chosen = self._masks(part, tensor, limits, notes) if part.prunable else {}
                for target, writer in writers.items():
                    version = tensor.masked_fill(chosen[target], 0) if target in chosen else tensor
                    removed[target] += int((version == 0).sum()) if target in chosen else 0
                    writer.write(info.name, version)
                if progress:
                    progress(done + 1, len(layout))
        except BaseException:
            for writer in writers.values():
                writer.abort()
            raise
        for target, writer in writers.items():
            writer.close(self._manifest(target))
            self._emit(target, removed[target], "; ".join(sorted(notes[target])), time.perf_counter() - started, emit)

    def _original(self, part: Part) -> Part:
        """A tied repeat is treated like the tensor that it repeats."""
        return self.parts[self.checkpoint.ties.get(part.name, part.name)]

    def _keys(self, part: Part, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's scores as keys, (out, in) whatever the storage order."""
        weights = tensor.T if part.rows_last else tensor
        return keys(self.score(weights, part.name, self.seed), part.name)

    def _all_keys(self) -> Iterator[torch.Tensor]:
        for name, part in self.parts.items():
            if part.prunable:
                yield self._keys(part, self.checkpoint.load(name))

    def _global_thresholds(self) -> dict[Target, Threshold]:
        """One exact threshold per target over all prunable weights."""
        if any(target.pattern != "unstructured" for target in self.folders):
            raise UnsupportedError("an N:M pattern has no global form", "use granularity: layer with a pattern")
        total = sum(self.checkpoint.tensors[name].numel for name, part in self.parts.items() if part.prunable)
        ranks = [masks.count(target.sparsity, total) for target in self.folders]
        passes = (self._all_keys() for _ in range(2))
        return dict(zip(self.folders, thresholds(passes, ranks), strict=True))

    def _masks(
        self, part: Part, tensor: torch.Tensor, limits: dict[Target, Threshold], notes: dict[Target, set[str]]
    ) -> dict[Target, torch.Tensor]:
        """For each target the mask in the tensor's own storage order. Global tie budgets in ``limits`` are spent here."""
        found = self._keys(part, tensor)
        chosen: dict[Target, torch.Tensor] = {}
        plain = [target for target in self.folders if target.pattern == "unstructured"]
        if limits:
            for target in plain:
                chosen[target] = masks.lowest(found, limits[target])
                spent = min(limits[target].ties, int((found == limits[target].key).sum()))
                limits[target] = Threshold(limits[target].key, limits[target].ties - spent)
        elif plain:
            select = masks.by_row if plain[0].granularity == "row" else masks.by_layer
            chosen |= zip(plain, select(found, [target.sparsity for target in plain]), strict=True)
        for target in self.folders:
            if target.pattern != "unstructured":
                chosen[target] = masks.by_pattern(found, target.pattern)
                if found.shape[1] % int(target.pattern.split(":")[1]):
                    notes[target].add(f"columns beyond the last whole group of {target.pattern} kept")
        return {target: mask.T if part.rows_last else mask for target, mask in chosen.items()}

    def _manifest(self, target: Target) -> dict[str, Any]:
        """What the version's ``sparsebench.json`` says of how it was made."""
        return {"method": self.method, "seed": self.seed, "family": self.family, **asdict(target)}

    def _emit(self, target: Target, removed: int, note: str, seconds: float, emit: Emit) -> None:
        result = verify(self.folders[target], self.family, seconds, len(self.folders), note)
        if result.zeros != removed:
            raise ModelError(f"{self.folders[target]}: {result.zeros} zeros on disk where {removed} were written")
        emit(target, result)


def verify(folder: Path, family: str, seconds: float = 0.0, sweep_size: int = 1, note: str = "") -> SparsifyResult:
    """Count zeros in the written files, over prunable weights and over all parameters (tied ones once)."""
    checkpoint = Checkpoint(folder)
    places = parts(checkpoint, family)
    tensors: list[TensorSparsity] = []
    parameters = total_zeros = 0
    for info, tensor in checkpoint.items():
        if info.name in checkpoint.ties:
            continue
        zeros = int((tensor == 0).sum())
        parameters += info.numel
        total_zeros += zeros
        place = places[info.name]
        if place.prunable:
            tensors.append(TensorSparsity(info.name, place.layer, place.side, place.kind, info.numel, zeros))
    prunable, zeros = sum(t.count for t in tensors), sum(t.zeros for t in tensors)
    return SparsifyResult(
        prunable=prunable,
        zeros=zeros,
        parameters=parameters,
        total_zeros=total_zeros,
        achieved=zeros / prunable if prunable else 0.0,
        achieved_all=total_zeros / parameters if parameters else 0.0,
        seconds=seconds,
        sweep_size=sweep_size,
        peak_rss_bytes=_peak_rss(),
        tensors=tuple(tensors),
        note=note,
    )


def sparsify(
    dense: Path, family: str, method: str, targets: Sequence[tuple[Target, Path]], seed: int, emit: Emit
) -> None:
    """Make each target's folder from ``dense``, one sweep per granularity."""
    for granularity in dict.fromkeys(target.granularity for target, _ in targets):
        folders = {target: folder for target, folder in targets if target.granularity == granularity}
        Sweep(dense, family, method, folders, seed).run(emit)


def _peak_rss() -> int:
    """The process's peak resident set in bytes; 0 where the platform does not say."""
    import sys

    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
