"""The tasks of encoders: a row each."""

from __future__ import annotations

from sparsebench.benchmarks.task import COQA, Benchmark, validation

_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_NEEDS_HEAD = "needs a sequence-classification head"


def _head(
    name: str, data: str, n: int, fields: tuple[str, ...], classes: tuple[str, ...], description: str
) -> Benchmark:
    return Benchmark(
        name,
        ("encoder",),
        "classification",
        "acc",
        "majority",
        n,
        description,
        data=validation(data),
        fields=fields,
        classes=classes,
    )


ENCODER_TASKS = (
    Benchmark(
        name="mrpc_pair",
        families=("encoder",),
        adapter="pairs",
        metric="ap",
        chance="positives",
        n=408,
        description="GLUE MRPC validation: average precision of cosine similarity (MTEB pair classification)",
        scale="continuous",
        data=validation("glue/mrpc"),
        fields=(*_PAIR, "label"),
    ),
    Benchmark(
        name="stsb_sts",
        families=("encoder",),
        adapter="pairs",
        metric="spearman",
        chance="uncorrelated",
        n=1379,
        description="STS benchmark test, from the hub: Spearman's correlation of cosine similarity and gold (MTEB STS)",
        scale="continuous",
        hub=("mteb/stsbenchmark-sts", "default", "test"),
        fields=(*_PAIR, "score"),
    ),
    Benchmark(
        name="sst2_probe",
        families=("encoder",),
        adapter="probe",
        metric="acc",
        chance="1/choices",
        n=672,
        description="GLUE SST-2 validation, 200 documents to train on, 672 scored: linear probe (MTEB classification)",
        scale="continuous",
        data=validation("glue/sst2"),
        fields=("sentence",),
        classes=("negative", "positive"),
    ),
    Benchmark(
        name="sciq_retrieval",
        families=("encoder",),
        adapter="retrieval",
        metric="acc",
        chance="1/passages",
        n=887,
        description="SciQ validation: each question's own passage nearest by cosine among all 887 (accuracy at 1)",
        data=validation("sciq/none"),
    ),
    Benchmark(
        name="pseudo_perplexity",
        families=("encoder",),
        adapter="pseudo_perplexity",
        metric="pseudo_perplexity",
        chance="none",
        n=1334,
        tokens=128,
        description="CoQA validation, as `perplexity`; 128-token windows; needs a masked-language-model head; lower is better",
        scale="continuous",
        data=(COQA,),
        fields=("doc.story",),
    ),
    _head(
        "glue_rte",
        "glue/rte",
        277,
        _PAIR,
        ("entailment", "not_entailment"),
        f"GLUE RTE validation; {_NEEDS_HEAD} (NLI will do)",
    ),
    _head(
        "superglue_cb",
        "super_glue/cb",
        56,
        _NLI,
        ("entailment", "contradiction", "neutral"),
        f"SuperGLUE CB validation, accuracy; {_NEEDS_HEAD} (NLI)",
    ),
    _head(
        "glue_mrpc",
        "glue/mrpc",
        408,
        _PAIR,
        ("not_equivalent", "equivalent"),
        f"GLUE MRPC validation; {_NEEDS_HEAD}",
    ),
    _head(
        "glue_sst2", "glue/sst2", 872, ("sentence",), ("negative", "positive"), f"GLUE SST-2 validation; {_NEEDS_HEAD}"
    ),
    Benchmark(
        name="glue_mnli",
        families=("encoder",),
        adapter="classification",
        metric="acc",
        chance="majority",
        n=9815,
        description=f"GLUE MNLI matched validation, from the hub; {_NEEDS_HEAD} (NLI)",
        hub=("nyu-mll/glue", "mnli", "validation_matched"),
        fields=_NLI,
        classes=("entailment", "neutral", "contradiction"),
    ),
)
