"""Retrieval: is a question's own passage the nearest of all passages?"""

from __future__ import annotations

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec, drawn
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.pairs import unit_vectors


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Return the accuracy at 1 by cosine similarity. Questions without a passage are left out; equal passages are one.

    ``limit`` limits the questions, never the passages, so the task stays as hard. A question counts as wrong if a wrong
    passage is as similar as its own (a collapsed encoder's similarities are all equal). Raises BenchmarkError when a
    vector is not finite.
    """
    all_documents = documents(task, spec, cache)
    question_column, passage_column = task.fields
    pairs = [(str(row[question_column]), str(row[passage_column]).strip()) for row in all_documents]
    answerable = [(number, question, passage) for number, (question, passage) in enumerate(pairs) if passage]
    passages = list(dict.fromkeys(passage for _, _, passage in answerable))
    _, questions = drawn(answerable, spec.limit)
    vectors = unit_vectors(encoder.embed(passages + [question for _, question, _ in questions]), task)
    similarity = vectors[len(passages) :] @ vectors[: len(passages)].T
    position_of = {passage: number for number, passage in enumerate(passages)}
    values = [
        float((row >= row[position_of[passage]]).sum() == 1)
        for row, (_, _, passage) in zip(similarity, questions, strict=True)
    ]
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(question, passage), value, cluster=hashes.of_context(passage))
            for (number, question, passage), value in zip(questions, values, strict=True)
        ),
        available=len(answerable),
        chance=1 / len(passages),
        protocol=encoder.protocol(task, all_documents)
        | {
            "pooling": encoder.pooling.mode,
            "passages": len(passages),
            "questions_without_passage": len(pairs) - len(answerable),
        },
    )
