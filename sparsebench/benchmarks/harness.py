"""Scoring through lm-eval's own harness, with its prompts, requests and metrics, per document.

Imported only to score: lm-eval and torch are heavy.
"""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache as memoized
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from lm_eval import utils
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from tqdm.std import tqdm
from transformers import PreTrainedModel

from sparsebench import sources
from sparsebench.benchmarks import choices, folder_task, hashes, index
from sparsebench.benchmarks.catalog import all_tasks, data_sources
from sparsebench.benchmarks.causal import CausalScorer
from sparsebench.benchmarks.contract import (
    Outcome,
    Progress,
    ScoreResult,
    TaskSpec,
    mean_stderr,
    refuse_all_non_finite,
    sampled,
)
from sparsebench.benchmarks.masked import LengthScorer, MaskedScorer
from sparsebench.errors import BenchmarkError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.files.text import load_tokenizer

BATCH_SIZE = 16
"""Sequences per forward pass. On two cores 16 is fastest: 8 leave the cores idle, 32 do not fit into the CPU cache."""
SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""Stock lm-eval's seeds."""
_PREFERRED = ("acc_norm", "acc", "exact_match", "em", "f1")
_LM_EVAL_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, AssertionError, TemplateError,
)  # fmt: skip
"""Errors that a task file, its Python helpers, a missing package or the hub may raise inside lm-eval."""


class _ChosenMetric(NamedTuple):
    """The metric that counts, and the lm-eval filter whose answers it is computed from."""

    metric: str
    filter: str


class Harness:
    """One model, loaded once, for any number of tasks. An encoder's ``model`` has a masked-language-model head."""

    def __init__(
        self, folder: Path, family: Family, batch_size: int | None, progress: Progress | None, model: PreTrainedModel
    ) -> None:
        self.batch_size = batch_size or BATCH_SIZE
        self.keeps_batch_size = batch_size is not None
        self.model = model
        self.lm: MaskedScorer | CausalScorer
        tokenizer: Any = load_tokenizer(folder)
        with _quiet():
            if family == "encoder":
                self.lm = MaskedScorer(self.model, tokenizer, batch_size)
            else:
                self.lm = CausalScorer(
                    pretrained=self.model,
                    tokenizer=tokenizer,
                    backend="causal" if family == "decoder" else "seq2seq",
                    batch_size=self.batch_size,
                    trust_remote_code=False,
                    shares_prefixes=not self.keeps_batch_size,
                    keeps_batch_size=self.keeps_batch_size,
                )
        self.lm.progress = progress

    def score(self, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
        """Score one task.

        Raises BenchmarkError when it cannot be loaded, lm-eval fails on it, or no document has a finite result, and
        UnsupportedError when none of its metrics is a mean over documents.
        """
        self.lm.sharing = (
            "off: a batch size is given" if self.keeps_batch_size else "off: no log-likelihood is asked for"
        )
        with _quiet(), folder_task.sandboxed() if spec.own else nullcontext(), _templates_once():
            loaded = _load(spec, cache)
            for task in loaded["tasks"].values():
                _set_fewshot(task, spec)
            try:
                results = _evaluate(self.lm, loaded, spec.limit)
            except _LM_EVAL_ERRORS as error:
                raise BenchmarkError(f"task {spec.task}: {type(error).__name__}: {error}") from error
            return self._result(spec, loaded, results)

    def _result(self, spec: TaskSpec, loaded: dict[str, Any], results: dict[str, Any]) -> ScoreResult:
        chosen = _choose_metric(spec, loaded, results)
        samples = [
            (name, sample)
            for name in loaded["tasks"]
            for sample in results["samples"][name]
            if sample["filter"] == chosen.filter
        ]
        non_finite = sum(_has_non_finite(sample) for _, sample in samples)
        refuse_all_non_finite(spec.task, "the log-likelihoods", non_finite, len(samples))
        outcomes = tuple(_outcome(name, sample, chosen.metric, len(loaded["tasks"]) > 1) for name, sample in samples)
        score = math.fsum(outcome.value for outcome in outcomes) / len(outcomes)
        as_harness = sum(float(sample[chosen.metric]) for _, sample in samples) / len(samples)
        _check_mean(spec.task, chosen, as_harness, results)
        available = sum(len(task.eval_docs) for task in loaded["tasks"].values())
        counts: dict[str, str | int | float] = {
            "documents": available,
            "documents_sha256": hashes.of_documents(sample["doc"] for _, sample in samples),
            "non_finite": non_finite,
        }
        return ScoreResult(
            task=spec.task,
            metric=chosen.metric,
            score=score,
            stderr=mean_stderr([outcome.value for outcome in outcomes]),
            n=len(outcomes),
            limited=len(outcomes) < available,
            chance=_chance(spec, loaded["tasks"], samples, chosen.metric),
            outcomes=outcomes,
            protocol=self._protocol(spec, loaded, results, chosen) | counts,
        )

    def _protocol(
        self, spec: TaskSpec, loaded: dict[str, Any], results: dict[str, Any], chosen: _ChosenMetric
    ) -> dict[str, str | int | float]:
        name, task = next(iter(loaded["tasks"].items()))
        hub = {
            f"{member.config.dataset_path}/{member.config.dataset_name or ''}" for member in loaded["tasks"].values()
        }
        config, dtype = task.config, dtype_name(self.model.dtype)
        split = config.test_split or config.validation_split or ""
        return {
            "harness": f"lm-eval {version('lm_eval')}",
            "task_version": str(results["versions"].get(spec.task, results["versions"].get(name))),
            "data": " ".join(data_sources(spec.task))
            if index.has_local_data(spec)
            else f"hub {', '.join(sorted(hub))}",
            "split": split,
            "num_fewshot": config.num_fewshot,
            "fewshot_split": _fewshot_split(config) if config.num_fewshot else "",
            "fewshot_seed": SEEDS["fewshot"],
            "chat_template": "none",
            "filter": chosen.filter,
            "chance_rule": spec.benchmark.chance
            if spec.benchmark and spec.benchmark.metric
            else "1/choices, or 0 for open answers",
            "batch_size": self.batch_size,
            "prefix_sharing": self.lm.sharing,
            "dtype": dtype,
            "softmax_dtype": dtype,
        } | dict(self.lm.notes)


class LengthHarness(Harness):
    """lm-eval's tasks with choices, answered by length."""

    def __init__(self, sign: int) -> None:
        """``sign`` is 1 for the longest answer, -1 for the shortest."""
        self.batch_size, self.keeps_batch_size = 1, False
        self.model: Any = SimpleNamespace(dtype="none")
        self.lm: Any = LengthScorer(sign)


def _load(spec: TaskSpec, cache: sources.Cache) -> dict[str, Any]:
    """Load lm-eval's task objects: ours over local data, any other task as stock defines it."""
    if spec.own:
        return _load_own(spec, spec.own.fetch(cache))
    file = index.stock_files(cache).get(spec.task)
    if file is None:
        raise BenchmarkError(f"lm-eval has no task {spec.task!r}", "list the names with `sparsebench score --list`")
    local = index.has_local_data(spec)
    try:
        if local:
            return index.load(spec.task, cache)
        # Reading all of lm-eval's task files takes six seconds; only a group needs it.
        manager = TaskManager(include_defaults=file == index.GROUP)
        return dict(manager.load([spec.task if file == index.GROUP else str(index.tasks_folder() / file)]))
    except _LM_EVAL_ERRORS as error:
        raise BenchmarkError(*_not_loaded(spec, local, error)) from error


def _load_own(spec: TaskSpec, path: Path) -> dict[str, Any]:
    try:
        if spec.required_benchmark.form == "records":
            return choices.load(spec.task, path, spec.required_benchmark.fields)
        return folder_task.load_task(path, spec.task)
    except _LM_EVAL_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise BenchmarkError(f"task {spec.task}: lm-eval cannot load it: {reason}", "mend its files") from error


def _not_loaded(spec: TaskSpec, local: bool, error: Exception) -> tuple[str, str]:
    """Return the message and the hint for a task that lm-eval cannot load."""
    reason = f"{type(error).__name__}: {error}"
    if spec.task in all_tasks() and not local:
        with_examples = ", ".join(name for name, task in all_tasks().items() if task.examples)
        return (
            f"task {spec.task}: the examples come from a split that only the hub has, which does not serve it: {reason}",
            f"remove `num_fewshot`; tasks that need no hub for examples: {with_examples}",
        )
    where = "" if local else " (stock data come from the hub: is it reachable?)"
    without_hub = ", ".join(name for name, task in all_tasks().items() if task.adapter == "harness")
    return f"task {spec.task}: its data cannot be loaded{where}: {reason}", f"tasks that need no hub: {without_hub}"


def _set_fewshot(task: Any, spec: TaskSpec) -> None:
    """Set the number of examples as lm-eval's ``simple_evaluate`` does, but refuse a number that it would ignore."""
    default = task.get_config("num_fewshot")
    if spec.num_fewshot and default == 0:
        raise BenchmarkError(f"task {spec.task} takes no examples in its prompt", "remove `num_fewshot`")
    # Examples of records are other records; a folder of lm-eval's task files names a split of its own for them.
    records = spec.benchmark is not None and spec.benchmark.form == "records"
    if records and spec.num_fewshot and spec.num_fewshot >= (count := len(task.eval_docs)):
        raise BenchmarkError(
            f"task {spec.task}: `num_fewshot` is {spec.num_fewshot}, but there are {count} records, and none is its own example",
            f"set `num_fewshot` to {count - 1} or less",
        )
    task.set_config(key="num_fewshot", value=(default or 0) if spec.num_fewshot is None else spec.num_fewshot)
    task.set_fewshot_seed(seed=SEEDS["fewshot"])


def _evaluate(lm: Any, loaded: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Run lm-eval's ``evaluate`` with stock seeds. (``simple_evaluate`` spends a second a task on listing packages.)"""
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])
    samples = {name: sampled(len(task.eval_docs), limit) for name, task in loaded["tasks"].items()} if limit else None
    # No bootstrap: standard errors are computed in this module, from the outcomes.
    return dict(evaluate(lm, loaded, samples=samples, bootstrap_iters=0, log_samples=True))


def _choose_metric(spec: TaskSpec, loaded: dict[str, Any], results: dict[str, Any]) -> _ChosenMetric:
    """Choose our table's metric, else the first of _PREFERRED that has one number per document in every subtask."""
    reported_keys = [dict.fromkeys(key for key in results["results"][task] if "," in key) for task in loaded["tasks"]]
    for metric in [spec.benchmark.metric] if spec.benchmark and spec.benchmark.metric else _PREFERRED:
        for key in reported_keys[0]:
            label, _, filtered = key.partition(",")
            if label == metric and all(key in keys for keys in reported_keys) and _is_scalar(loaded, results, metric):
                return _ChosenMetric(metric, filtered)
    raise UnsupportedError(
        f"task {spec.task}: none of its metrics ({', '.join(reported_keys[0])}) is a mean of one number a document",
        "choose a task scored by accuracy or exact match",
    )


def _is_scalar(loaded: dict[str, Any], results: dict[str, Any], metric: str) -> bool:
    samples = [sample for task in loaded["tasks"] for sample in results["samples"][task] if metric in sample]
    return bool(samples) and all(isinstance(sample[metric], int | float) for sample in samples)


def _fewshot_split(config: Any) -> str:
    """Return the split from which lm-eval takes a task's examples, or where else they come from."""
    examples = config.fewshot_config
    if examples.split is None and examples.samples is not None:
        return "the task's own"
    return examples.split or config.training_split or config.validation_split or config.test_split or ""


def _outcome(task: str, sample: dict[str, Any], metric: str, grouped: bool) -> Outcome:
    """Return a document's outcome: wrong if a log-likelihood is not finite, as an argmax over NaN would be a guess."""
    prompt_parts = (part for arguments in sample["arguments"] for part in arguments if isinstance(part, str))
    return Outcome(
        doc_id=f"{task}/{sample['doc_id']}" if grouped else str(sample["doc_id"]),
        doc_hash=hashes.of_prompt(*prompt_parts),
        value=0.0 if _has_non_finite(sample) else float(sample[metric]),
        cluster=hashes.cluster(sample["doc"]),
    )


def _has_non_finite(sample: dict[str, Any]) -> bool:
    answers: Sequence[Any] = sample["filtered_resps"]
    numbers = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers]
    return any(isinstance(number, float) and not math.isfinite(number) for number in numbers)


def _check_mean(name: str, chosen: _ChosenMetric, score: float, results: dict[str, Any]) -> None:
    """Refuse a metric or a group that lm-eval does not aggregate by a mean over documents."""
    group_results = (results.get("groups") or {}).get(name) or next(iter(results["results"].values()))
    stock = group_results.get(f"{chosen.metric},{chosen.filter}")
    if not isinstance(stock, float | int) or abs(stock - score) > 1e-9:
        raise UnsupportedError(
            f"task {name}: lm-eval gives {chosen.metric} {stock}, the mean over its documents is {score}",
            "name its subtasks one by one",
        )


def _chance(
    spec: TaskSpec, tasks: dict[str, Any], samples: list[tuple[str, dict[str, Any]]], metric: str
) -> float | None:
    """Return the chance score; None if unknown.

    It is the majority class's share if our table says so, else the mean of 1/choices over documents, else 0 for open
    answers.
    """
    if spec.benchmark and spec.benchmark.chance == "majority":
        return max(Counter(sample["target"] for _, sample in samples).values()) / len(samples)
    kinds = {task.OUTPUT_TYPE for task in tasks.values()}
    if kinds == {"multiple_choice"} and metric.startswith("acc"):
        return math.fsum(1 / len(tasks[name].doc_to_choice(sample["doc"])) for name, sample in samples) / len(samples)
    if "multiple_choice" not in kinds and metric in ("acc", "exact_match", "em"):
        return 0.0
    return None


@contextmanager
def _templates_once() -> Iterator[None]:
    """Compile each prompt template once, not once per document and answer, which takes longer than tokenizing."""
    env = utils.env
    env.from_string = memoized(env.from_string)
    try:
        yield
    finally:
        del env.from_string


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence lm-eval's log and all progress bars: a run has its own display."""
    logger = logging.getLogger("lm_eval")
    level, start = logger.level, tqdm.__init__

    def silent(bar: Any, *args: Any, **kwargs: Any) -> None:
        start(bar, *args, **{**kwargs, "disable": True})

    logger.setLevel(logging.ERROR)
    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = start
        logger.setLevel(level)
