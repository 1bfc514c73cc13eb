"""The user's own multiple-choice questions for lm-eval: a task file, and the function that gives it the documents.

As in lm-eval's ``multiple_choice``, the answer is the likeliest choice after the context and a space. Examples in the
prompt are other records of the file, drawn anew for each document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict
from lm_eval.tasks import TaskManager

from sparsebench.benchmarks import own
from sparsebench.paths import temporary_folder


def load(task: str, path: Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """Load the task over a file, as ``TaskManager.load`` does; ``fields`` are its columns context, choices and gold."""
    # Bare names of columns: no text of a record is ever read as a template.
    task_file = {
        "task": task,
        "dataset_kwargs": {"task": task, "path": str(path), "fields": list(fields)},
        "output_type": "multiple_choice",
        "test_split": "test",
        # Stated explicitly: lm-eval then leaves a record out of its own examples.
        "fewshot_split": "test",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    with temporary_folder() as folder:
        # A function's tag has to be appended by hand: safe_dump cannot write it.
        text = yaml.safe_dump(task_file) + f"custom_dataset: !function {__name__}.documents\n"
        (Path(folder) / "task.yaml").write_text(text, encoding="utf-8")
        return dict(TaskManager(include_path=folder, include_defaults=False).load([task]))


def documents(task: str, path: str, fields: list[str], **_: Any) -> DatasetDict:
    """Return the records as ``context``, ``choices`` and ``gold``, the right choice's number from 0.

    Raises BenchmarkError for a record without a context, two choices or more, and one right choice.
    """
    records = [
        _document(task, number, fields, row)
        for number, row in enumerate(own.records(task, Path(path), tuple(fields)), 1)
    ]
    return DatasetDict({"test": Dataset.from_list(records)})


def _document(task: str, number: int, fields: list[str], row: list[Any]) -> dict[str, Any]:
    context, choices, gold = row
    if not own.has_text(context):
        raise own.unusable(task, number, fields[0], context, "a text")
    texts = list(choices) if isinstance(choices, list | tuple) else []
    if len(texts) < 2 or not all(map(own.has_text, texts)):
        raise own.unusable(task, number, fields[1], choices, "a list of two texts or more")
    gold_number = texts.index(gold) if isinstance(gold, str) and texts.count(gold) == 1 else gold
    if isinstance(gold_number, bool) or not isinstance(gold_number, int) or not 0 <= gold_number < len(texts):
        raise own.unusable(task, number, fields[2], gold, f"one of its choices or their numbers, 0 to {len(texts) - 1}")
    return {"context": context, "choices": texts, "gold": gold_number}
