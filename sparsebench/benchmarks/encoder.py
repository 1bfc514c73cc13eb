"""An encoder and what its tasks share: sentence vectors, class logits, documents; batches sorted by length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import TASKS
from sparsebench.benchmarks.contract import Progress, ScoreResult, TaskSpec
from sparsebench.benchmarks.pooling import Pooling, read_pooling
from sparsebench.benchmarks.task import Task
from sparsebench.errors import BenchmarkError

if TYPE_CHECKING:
    import numpy as np
    import torch

BATCH_SIZE = 16
"""Texts a forward pass; fastest on two cores, in float32 and in bfloat16."""


class Encoder:
    """One model, loaded once, and any number of tasks."""

    def __init__(self, folder: Path, batch_size: int | None, progress: Progress | None) -> None:
        from sparsebench.models.families import has_classifier
        from sparsebench.models.load import load_model, load_tokenizer

        self.folder = Path(folder)
        self.model = load_model(folder, "encoder")
        self.tokenizer: Any = load_tokenizer(folder)
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.has_head = has_classifier(self.config)
        self.batch_size = batch_size or BATCH_SIZE
        self.progress = progress

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError when this encoder is not made for it."""
        task = TASKS[spec.task]
        adapter = import_module(f"sparsebench.benchmarks.{task.adapter}")
        if self.has_head != adapter.NEEDS_HEAD:
            needed = "a sequence-classification head" if adapter.NEEDS_HEAD else "a plain encoder, without a head"
            fit = ", ".join(
                name
                for name, other in TASKS.items()
                if other.families == ("encoder",) and (other.adapter == "classification") == self.has_head
            )
            raise BenchmarkError(
                f"task {spec.task} needs {needed}; {self.folder.name} is {self.config.get('architectures')}",
                f"for this model: {fit}",
            )
        result: ScoreResult = adapter.score(self, task, spec, documents(task, cache))
        return result

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One vector per text, float32 (n, width), pooled as the checkpoint says; equal texts are encoded once."""
        import numpy as np

        pooling = self.pooling
        distinct = list(dict.fromkeys(texts))
        prepared = [text.lower() for text in distinct] if pooling.lower_case else distinct
        limit = min(pooling.max_length or self.max_length, self.max_length)
        vectors: list[Any] = [None] * len(distinct)
        for places, batch in self._batches([(text,) for text in prepared], limit):
            pooled = pooling.apply(self.model(**batch).last_hidden_state, batch["attention_mask"]).cpu().numpy()
            for place, vector in zip(places, pooled, strict=True):
                vectors[place] = vector
        position = {text: place for place, text in enumerate(distinct)}
        return np.stack([vectors[position[text]] for text in texts])

    def logits(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """The head's outputs, float32 (n, classes), for single texts or pairs."""
        import numpy as np

        outputs: list[Any] = [None] * len(texts)
        for places, batch in self._batches(texts, self.max_length):
            for place, row in zip(places, self.model(**batch).logits.float().cpu().numpy(), strict=True):
                outputs[place] = row
        return np.stack(outputs)

    def protocol(self, task: Task) -> dict[str, str | int | float]:
        """What every encoder task records."""
        from importlib.metadata import version

        return {
            "harness": f"sparsebench encoders, transformers {version('transformers')}",
            "task_version": "1",
            "data": " ".join(task.data) or "hub " + "/".join(task.hub or ()),
            "split": task.hub[2] if task.hub else "validation",
            "chance_rule": task.chance,
            "batch_size": self.batch_size,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def pooling(self) -> Pooling:
        """How this checkpoint pools."""
        return read_pooling(self.folder)

    @property
    def max_length(self) -> int:
        """The longest input in tokens: the tokenizer's word, or the position table's size where it has none."""
        positions = int(self.config.get("max_position_embeddings") or 512)
        if self.config.get("model_type") in ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "mpnet"):
            # Their positions begin after the padding token's.
            positions -= int(self.config.get("pad_token_id", 1)) + 1
        return min(int(self.tokenizer.model_max_length), positions)

    def _batches(
        self, texts: Sequence[tuple[str, ...]], limit: int
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
        """Padded batches, longest first, each with the places of its texts; gradients are off while one is used."""
        import torch

        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=limit)
        order = sorted(range(len(texts)), key=lambda place: -len(encoded["input_ids"][place]))
        for start in range(0, len(order), self.batch_size):
            places = order[start : start + self.batch_size]
            rows = {name: [values[place] for place in places] for name, values in encoded.items()}
            batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                yield places, dict(batch)
            if self.progress:
                self.progress(min(start + self.batch_size, len(order)), len(order))


def documents(task: Task, cache: sources.Cache) -> list[dict[str, Any]]:
    """The task's documents in the order of the data. Raises BenchmarkError when the hub does not serve them."""
    if task.hub is None:
        import pyarrow as pa

        with pa.memory_map(str(sources.fetch(sources.parse(task.data[0]), cache))) as file:
            rows: list[dict[str, Any]] = pa.ipc.open_stream(file).read_all().to_pylist()
        return rows
    import datasets

    path, name, split = task.hub
    try:
        found = datasets.load_dataset(path, name, split=split, cache_dir=str(cache.root / "datasets"))
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(
            f"task {task.name}: {path}/{name} cannot be had from the hub: {type(error).__name__}: {error}",
            "check HF_ENDPOINT, HF_HUB_OFFLINE and the network, or choose a task with offline data",
        ) from error
    return [dict(row) for row in found]


def fingerprint(*texts: str) -> str:
    """The sha1 of what the model is shown."""
    return hashlib.sha1("\x1f".join(texts).encode()).hexdigest()
