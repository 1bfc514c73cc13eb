"""The table of tasks with offline data. A new one is a row here, and for lm-eval's a file in ``tasks/`` as well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sparsebench.benchmarks.cmudict import SOURCE
from sparsebench.benchmarks.encoder_tasks import ENCODER_TASKS
from sparsebench.benchmarks.lm_eval_tasks import FAMILIES, LM_EVAL_TASKS
from sparsebench.benchmarks.task import COQA, Benchmark, ChanceRule, Scale

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family


def _g2p(name: str, metric: str, chance: ChanceRule, scale: Scale, measure: str) -> Benchmark:
    description = f"CMUdict, 10% of its words held out: spelling to phonemes without stress, {measure}"
    return Benchmark(
        name, ("encoder-decoder",), "generation", metric, chance, 12653, description, scale, data=(SOURCE,)
    )


TASKS: dict[str, Benchmark] = {
    task.name: task
    for task in (
        *LM_EVAL_TASKS,
        Benchmark(
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
            version=2,
        ),
        _g2p("g2p", "exact_match", "open", "0/1", "any pronunciation listed counts as right"),
        _g2p("g2p_per", "per", "none", "continuous", "edits to the nearest per phoneme; lower is better"),
        *ENCODER_TASKS,
    )
}
"""Every task of our own, by name. Any other task of lm-eval is known by its stock name (``index``)."""


def adapter_of(name: str) -> str:
    """The module of this room that scores a task; those that lm-eval alone knows are the harness's."""
    return TASKS[name].adapter if name in TASKS else "harness"


def families(name: str) -> tuple[Family, ...]:
    """The families that a task is for. An encoder takes lm-eval's where it has a masked-language-model head."""
    return TASKS[name].families if name in TASKS else FAMILIES


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
        return list(
            dict.fromkeys(located(text)[0] for text in definition(name)["dataset_kwargs"]["data_files"].values())
        )
    return list(task.data)


def located(text: str) -> tuple[str, str]:
    """A task file's datum as a source and a path in it: what names the subtask's data set lies in one folder for all."""
    outer, brace, inner = text.partition("{")
    inner, _, sha256 = inner.partition("#")
    return (f"{outer}#{sha256}", brace + inner) if brace else (text, "")
