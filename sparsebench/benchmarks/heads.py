"""The heads that a model's config.json names, and the tasks that need them: known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.benchmarks.own import OwnData, column_values
from sparsebench.errors import Refusal, SparsebenchError
from sparsebench.manifest.names import Family
from sparsebench.models.files.families import has_classifier, has_masked_lm, has_tagger
from sparsebench.models.files.labels import choice_problem, class_numbers, head_outputs
from sparsebench.sources.text import read_records

_ENCODER_HEADS = {
    "tagging": ("a token-classification head", has_tagger),
    "harness": ("a masked-language-model head", has_masked_lm),
    "pseudo_perplexity": ("a masked-language-model head", has_masked_lm),
}
"""By adapter, the head that an encoder needs for its tasks, in words, and what tells whether config.json names it."""
REGRESSION = ("pearson", "spearman")
"""The metrics of a head that gives a number."""
_RECORDS_READ = 10_000
"""The records of a user's own file whose labels are read before a run."""


def missing_head(adapter: str, config: Mapping[str, Any], family: Family) -> str | None:
    """Return, in words, the head that an adapter needs and a model with this config.json lacks; None if none.

    An encoder without its head, and a plugin, take any model.
    """
    if adapter == "classification":
        return None if has_classifier(config) else "a sequence-classification head"
    if family != "encoder":
        return "a head that predicts tokens" if has_classifier(config) and ":" not in adapter else None
    head, has_head = _ENCODER_HEADS.get(adapter, ("", has_classifier))
    return head if head and not has_head(config) else None


def fitting_tasks(config: Mapping[str, Any], family: Family) -> list[str]:
    """Return the names of the tasks in the table that a model with this config.json can be scored on."""
    rows = all_tasks().values()
    own_task = ["{task: classify, source: path:FILE}"] if has_classifier(config) else []
    return own_task + [
        row.name for row in rows if family in row.families and not missing_head(row.adapter, config, family)
    ]


def data_misfit(
    own_data: OwnData, config: Mapping[str, Any], labels: Sequence[str] | None
) -> tuple[str, Refusal] | None:
    """Return the key of an entry that does not fit a classification head, and why; None where all keys fit.

    ``labels`` are the names of the head's outputs if the manifest gives them. Of a file on this machine, the first
    labels are read too.
    """
    metric, problem, several = own_data.metric_used, choice_problem(config), len(head_outputs(config)) > 1
    if metric in REGRESSION and not problem:
        return "metric", Refusal("its head chooses a class, not a number", "`metric: acc` or `metric: macro_f1`")
    if metric in REGRESSION and several:
        return "metric", Refusal("its head gives several numbers, not one", "a head with one output")
    if metric not in REGRESSION and problem:
        way_out = (
            "a head that chooses one class"
            if several
            else "`metric: spearman` or `metric: pearson`, for a single number"
        )
        return "metric" if own_data.metric else "task", Refusal(problem, way_out)
    source = sources.parse(own_data.source)
    if source.kind != "path" or metric in REGRESSION:
        return None
    path = Path(source.location)
    try:
        records = islice(enumerate(read_records(path, *own_data.fields), 1), _RECORDS_READ)
        columns = (column_values("classify", path.name, number, record, own_data.fields) for number, record in records)
        stated_labels = [str(values[1]) for values in columns]
        class_numbers(labels or head_outputs(config), [label for label in stated_labels if label.strip()])
    except SparsebenchError as error:
        return "source", Refusal(error.message, error.hint or "")
    return None
