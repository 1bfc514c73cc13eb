"""A linear probe: logistic regression on sentence vectors (MTEB classification, Muennighoff et al. 2023, sect. 3.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec, drawn
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.pairs import check_vectors
from sparsebench.errors import BenchmarkError

EXPERIMENTS = 10
PER_LABEL = 16
MAX_ITER = 100
SEED = 42
POOL = 200
"""Number of documents that the experiments draw training samples from; the others are scored."""


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Return the mean accuracy of EXPERIMENTS probes, each trained on PER_LABEL documents of the pool per class.

    The documents outside the pool are scored. An outcome is the share of the probes that are right. ``limit`` limits
    what is scored, never the training. Raises BenchmarkError when a vector is not finite, or the pool has too few
    documents of a class.
    """
    all_documents = documents(task, spec, cache)
    # At least half of a user's own data is scored.
    pool, scored_documents = split_pool(all_documents, min(POOL, len(all_documents) // 2) if task.form else POOL)
    text_column, label_column = (*task.fields, "label")[:2]  # with ``classes`` there is one field beside the label
    classes = task.classes or tuple(sorted({str(row[label_column]) for row in all_documents}))
    numbers, rows = drawn(scored_documents, spec.limit)
    texts = [str(row[text_column]) for row in pool + rows]
    vectors = encoder.embed(texts)
    check_vectors(vectors, task)
    label_of = {name: number for number, name in enumerate(classes)}
    labels = np.array(
        [int(row[label_column]) if task.classes else label_of[str(row[label_column])] for row in pool + rows]
    )
    correct = np.zeros(len(rows))
    for sample in training_samples(labels[: len(pool)], task.name, len(classes)):
        probe = LogisticRegression(random_state=SEED, max_iter=MAX_ITER).fit(vectors[sample], labels[sample])
        correct += probe.predict(vectors[len(pool) :]) == labels[len(pool) :]
    values = (correct / EXPERIMENTS).tolist()
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(text), value)
            for number, text, value in zip(numbers, texts[len(pool) :], values, strict=True)
        ),
        available=len(scored_documents),
        chance=1 / len(classes),
        protocol=encoder.protocol(task, pool + rows)
        | {
            "pooling": encoder.pooling.mode,
            "split": ("" if task.form else "validation: ")
            + f"{len(pool)} documents to train on, {len(scored_documents)} to score, by a permutation of seed {SEED}",
            "classes": ", ".join(classes)[:500],
            "experiments": EXPERIMENTS,
            "samples_per_label": PER_LABEL,
            "max_iter": MAX_ITER,
            "stderr": "over the documents scored; the training samples are the same for every variant",
        },
    )


def split_pool(
    all_documents: list[dict[str, Any]], pool: int = POOL
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the documents to train on and those to score, by a permutation with seed SEED."""
    order = np.random.RandomState(SEED).permutation(len(all_documents))
    return [all_documents[number] for number in order[:pool]], [all_documents[number] for number in order[pool:]]


def training_samples(labels: np.ndarray, task: str, class_count: int) -> list[np.ndarray]:
    """Return the positions of each experiment's training documents, PER_LABEL of each class.

    One order is shuffled again for each experiment. Raises BenchmarkError for fewer than two classes, and when a class
    has too few documents.
    """
    counts = np.bincount(labels, minlength=class_count)
    if class_count < 2 or counts.min() < PER_LABEL:
        fewest = f"{counts.min()} documents of one to train on, {PER_LABEL} needed"
        raise BenchmarkError(
            f"task {task}: {class_count} classes, {fewest}", "give it more documents, of two classes or more"
        )
    generator, order, experiments = np.random.RandomState(SEED), np.arange(len(labels)), []
    for _ in range(EXPERIMENTS):
        generator.shuffle(order)
        of_each_class = [order[labels[order] == label][:PER_LABEL] for label in range(class_count)]
        experiments.append(np.concatenate(of_each_class))
    return experiments
