"""The table of tasks with offline data. A new one is a row here, and for lm-eval's a file in ``tasks/`` as well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sparsebench.benchmarks.encoder_tasks import ENCODER_TASKS
from sparsebench.benchmarks.task import COQA, Task

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family


LM_EVAL_FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder", "encoder")


def _lm_eval(name: str, metric: str, n: int, description: str) -> Task:
    return Task(name, LM_EVAL_FAMILIES, "harness", metric, "1/choices", n, description)


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
            data=(COQA,),
            fields=("doc.story",),
        ),
        *ENCODER_TASKS,
    )
}
"""Every task of our own, by name. Any other task of lm-eval is known by its stock name (``index``)."""


def adapter_of(name: str) -> str:
    """The module of this room that scores a task; those that lm-eval alone knows are the harness's."""
    return TASKS[name].adapter if name in TASKS else "harness"


def families(name: str) -> tuple[Family, ...]:
    """The families that a task is for. An encoder takes lm-eval's where it has a masked-language-model head."""
    return TASKS[name].families if name in TASKS else LM_EVAL_FAMILIES


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
