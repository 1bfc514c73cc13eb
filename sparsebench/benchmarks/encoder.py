"""An encoder, or any model with a head for classes, and what their tasks share.

That is sentence vectors, class logits, documents, and batches sorted by length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification, PreTrainedModel

from sparsebench import bounded, sources
from sparsebench.benchmarks import hashes, own
from sparsebench.benchmarks.batching import BatchSize, tokens_at_once
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import Progress, ScoreResult, TaskSpec, task_protocol
from sparsebench.benchmarks.pooling import Pooling, read_pooling
from sparsebench.errors import BenchmarkError, library_errors
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.files.families import has_classifier
from sparsebench.models.files.text import load_tokenizer, longest_input
from sparsebench.models.modules.load import load_model

if TYPE_CHECKING:
    from sparsebench.benchmarks.harness import Harness

DEFAULT_LENGTH = 512
"""Most tokens of an input if the model has no table of positions."""
BATCH_SIZE = 16
"""Texts per forward pass: the fastest number on two cores, in float32 and in bfloat16."""


ScoreFunction = Callable[..., ScoreResult]
"""A function of ``(model, tokenizer, task, spec, cache, progress)``.

The model is loaded and in evaluation mode: with its classification head if it has one, an encoder without any other
head. ``task`` is the row of the table, ``spec`` the settings from the manifest. Sources are fetched into ``cache``;
``progress`` is to be called with (done, total).
"""


@dataclass(frozen=True)
class Plugged:
    """One loaded model, for the functions that adapters name as ``module:function``."""

    model: Any
    tokenizer: Any
    progress: Progress | None = None

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError for any error in the plugin, and for anything but a ScoreResult."""
        task = spec.required_benchmark
        module, _, name = task.adapter.partition(":")
        progress = self.progress or (lambda done, total: None)
        with library_errors(f"task {spec.task}: {task.adapter}", "mend the plugin", BenchmarkError):
            function: ScoreFunction = getattr(import_module(module), name)
            result = function(self.model, self.tokenizer, task, spec, cache, progress)
        if not isinstance(result, ScoreResult):
            raise BenchmarkError(
                f"task {spec.task}: {task.adapter} gave a {type(result).__name__}, not a ScoreResult", "mend the plugin"
            )
        return result


class Encoder:
    """One model, loaded once, for any number of tasks."""

    def __init__(
        self, folder: Path, batch_size: int | None, progress: Progress | None, dtype: str = "auto", device: str = "cpu"
    ) -> None:
        self.folder = Path(folder)
        self.model: Any = load_model(folder, "encoder", dtype, device)
        self.config = bounded.read_object(self.folder / "config.json")
        self.tokenizer: Any = with_padding_token(load_tokenizer(folder), self.config)
        self.dtype, self.device = dtype, device
        self.requested_batch_size = batch_size
        fitting_texts = tokens_at_once(self.model, 0) // self.max_length
        if has_classifier(self.config) and self.model.config.pad_token_id != self.tokenizer.pad_token_id:
            batch_size = 1  # a decoder's head reads the last token that is no padding
        self.batch = BatchSize(batch_size or max(BATCH_SIZE, fitting_texts), is_fixed=batch_size is not None)
        self.progress = progress
        self._logits: dict[tuple[tuple[str, ...], ...], np.ndarray] = {}

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task. Raises BenchmarkError when it fails."""
        adapter = spec.adapter
        if adapter == "harness":
            return self._harness.score(spec, cache)
        if ":" in adapter:
            return Plugged(self.model, self.tokenizer, self.progress).score(spec, cache)
        module: Any = import_module(f"sparsebench.benchmarks.{adapter}")
        return cast("ScoreResult", module.score(self, spec.required_benchmark, spec, cache))

    @cached_property
    def masked(self) -> PreTrainedModel:
        """The model with its masked-language-model head. Raises ModelError when the files do not hold the head."""
        return self._with_head(AutoModelForMaskedLM)

    @cached_property
    def tagger(self) -> PreTrainedModel:
        """The model with its token-classification head. Raises ModelError when the files do not hold the head."""
        return self._with_head(AutoModelForTokenClassification)

    def _with_head(self, model_class: Any) -> PreTrainedModel:
        """Load the model with a head; tasks that need none use the same encoder from now on."""
        headed = load_model(self.folder, "encoder", self.dtype, self.device, model_class)
        self.model = headed.base_model
        return headed

    @cached_property
    def _harness(self) -> Harness:
        from sparsebench.benchmarks.harness import Harness

        return Harness(self.folder, "encoder", self.requested_batch_size, self.progress, self.masked)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return a vector per text, float32 (n, width), pooled as the checkpoint says. Equal texts are encoded once."""
        pooling = self.pooling
        distinct = list(dict.fromkeys(texts))
        prepared = [text.lower() for text in distinct] if pooling.lower_case else distinct
        max_length = min(pooling.max_length or self.max_length, self.max_length)
        vectors = self.outputs(
            [(text,) for text in prepared],
            max_length,
            lambda batch: pooling.apply(self.model.base_model(**batch).last_hidden_state, batch["attention_mask"]),
        )
        position = {text: number for number, text in enumerate(distinct)}
        return np.stack([vectors[position[text]] for text in texts])

    def logits(self, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Return the head's outputs, float32 (n, classes), for single texts or pairs; for the same ones again, as they were."""
        key = tuple(texts)
        if key not in self._logits:
            rows = self.outputs(texts, self.max_length, lambda batch: self.model(**batch).logits.float())
            self._logits = {key: np.stack(rows)}
        return self._logits[key]

    def outputs(
        self,
        texts: Sequence[tuple[str, ...]],
        max_length: int,
        forward: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    ) -> list[Any]:
        """Return what ``forward`` gives for each text, cut to ``max_length`` tokens, in padded batches, longest first."""
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(*columns, truncation=True, max_length=max_length)
        order = sorted(range(len(texts)), key=lambda number: -len(encoded["input_ids"][number]))

        def run(numbers: Sequence[int]) -> np.ndarray:
            unpadded = {name: [values[number] for number in numbers] for name, values in encoded.items()}
            batch = self.tokenizer.pad(unpadded, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                outputs: np.ndarray = forward(dict(batch)).cpu().numpy()
            return outputs

        results: list[Any] = [None] * len(texts)
        for done, (number, row) in enumerate(self.batch.each(order, run), 1):
            results[number] = row
            if self.progress:
                self.progress(done, len(order))
        return results

    def protocol(
        self, task: Benchmark, rows: Sequence[Mapping[str, Any]] | None, data: str | None = None
    ) -> dict[str, str | int | float]:
        """Return what every encoder task records. ``rows`` are its documents in order; None for running text."""
        hashed: dict[str, str | int | float] = {} if rows is None else {"documents_sha256": hashes.of_documents(rows)}
        split = task.hub[2] if task.hub else "validation"
        return hashed | {
            **task_protocol(task, f"sparsebench encoders, transformers {version('transformers')}", data),
            "split": "" if data or task.form else split,
            "batch_size": self.batch.most_rows,
            "dtype": dtype_name(self.model.dtype),
        }

    @property
    def pooling(self) -> Pooling:
        """The checkpoint's pooling of token vectors."""
        return read_pooling(self.folder)

    @property
    def max_length(self) -> int:
        """The longest input in tokens: the smaller of the tokenizer's limit and the model's (else DEFAULT_LENGTH)."""
        return min(int(self.tokenizer.model_max_length), longest_input(self.config) or DEFAULT_LENGTH)


def with_padding_token(tokenizer: Any, config: Mapping[str, Any]) -> Any:
    """Return the tokenizer with a padding token; what stands there is masked, except where config.json names it."""
    if tokenizer.pad_token is None:
        pad_id = config.get("pad_token_id")
        # Old configurations of Llama say -1 where there is none.
        is_named = pad_id is not None and pad_id >= 0
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id) if is_named else tokenizer.eos_token
    return tokenizer


def documents(task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> list[dict[str, Any]]:
    """Return the task's documents in the order of the data.

    They come from the user's own data if ``spec`` has any, else from its source ``data`` with the same columns, else
    from the task's own source. Raises BenchmarkError when the hub does not serve them, a column is missing, or a field
    of the user's data is empty.
    """
    if spec.own or spec.data:
        path = spec.own.fetch(cache) if spec.own else sources.fetch(sources.parse(spec.data or ""), cache)
        records = [dict(zip(task.fields, row, strict=True)) for row in own.records(task.name, path, task.fields)]
        for number, record in enumerate(records, 1):
            for column, value in record.items():
                if value is None or (isinstance(value, str) and not value.strip()):
                    raise own.unusable(task.name, number, column, value or "", "a value")
        return records
    if task.hub is None:
        import pyarrow as pa

        with pa.memory_map(str(sources.fetch(sources.parse(task.data[0]), cache))) as file:
            rows: list[dict[str, Any]] = pa.ipc.open_stream(file).read_all().to_pylist()
        return rows
    return _hub_documents(task, cache)


def _hub_documents(task: Benchmark, cache: sources.Cache) -> list[dict[str, Any]]:
    import datasets

    assert task.hub is not None
    data_set, configuration, split = task.hub
    folder = str(cache.root / "datasets")
    try:
        rows = datasets.load_dataset(data_set, configuration, split=split, cache_dir=folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise BenchmarkError(
            f"task {task.name}: {data_set}/{configuration} cannot be had from the hub: {type(error).__name__}: {error}",
            "check HF_ENDPOINT, HF_HUB_OFFLINE and the network, or choose a task with offline data",
        ) from error
    return [dict(row) for row in rows]
