"""A variant is known by the contents of the files that its steps name, and by nothing else of them."""

from pathlib import Path

import pytest

from sparsebench.benchmarks import all_tasks
from sparsebench.manifest.problems import ManifestError
from sparsebench.plan.estimate import ModelSize, job_seconds
from sparsebench.plan.expand import Plan
from sparsebench.plan.jobs import jobs
from tests.plan.planning import written
from tests.plan.test_preflight import ONE

MASKED = (
    ONE
    + """variants:
  - {{prune: mask, file: [{one}, {other}]}}
  - - {{prune: magnitude, sparsity: 0.5}}
    - {{prune: mask, file: {one}}}
runtime: {{select: {{file: {other}}}}}
"""
)


def masked(folder: Path, one: str, other: str, contents: tuple[bytes, bytes]) -> Plan:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name, content in zip((one, other), contents, strict=True):
        (folder / name).write_bytes(content)
    return written(folder, MASKED.format(one=one, other=other)).plan


def test_a_variant_is_known_by_the_content_of_the_file_that_its_step_names(tmp_path: Path) -> None:
    """Under whatever name and in whatever folder, from wherever the program runs."""
    first = masked(tmp_path / "a", "one", "deep/other", (b"1", b"2"))
    ids = [*first.variants]
    assert len(set(ids)) == 5  # dense, two masks, magnitude, and a mask behind it
    assert [*masked(tmp_path / "b", "deep/uno", "two", (b"1", b"2")).variants] == ids
    changed = masked(tmp_path / "b", "deep/uno", "two", (b"1", b"3"))
    assert [place for place, name in enumerate(changed.variants) if name not in ids] == [2]
    labels = [variant.recipe for variant in first.variants.values()]
    assert labels == ["dense", "mask one", "mask other", "magnitude/layer 50%", "magnitude/layer 50%, then mask one"]
    assert [variant.record()["sparsity"] for variant in first.variants.values()] == [0, None, None, 0.5, None]
    timed = {cell.variant.recipe for cell in first.cells if cell.stage == "latency"}
    assert timed == {"dense", "mask other"}


TRIMMED = (
    ONE
    + """calibration: {{source: "path:{calibration}", samples: {samples}}}
variants:
  - {{trim: corpus}}
  - - {{trim: corpus, source: ["path:{one}", "path:{other}"], min_count: 2}}
    - {{prune: magnitude, sparsity: 0.5}}
"""
)


def trimmed(folder: Path, contents: dict[str, str], more: str = "", samples: int = 8) -> Plan:
    (folder / "deep").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
    names = dict(zip(("calibration", "one", "other"), contents, strict=True))
    return written(folder, TRIMMED.format(**names, samples=samples) + more).plan


def test_a_trimmed_variant_is_known_by_the_content_of_its_text(tmp_path: Path) -> None:
    first = trimmed(tmp_path / "a", {"text": "x", "one": "y", "deep/other": "z"})
    ids = [*first.variants]
    assert len(set(ids)) == 6  # dense, the calibration text's, two of their own, and a pruned one behind either
    assert [*trimmed(tmp_path / "b", {"deep/text": "x", "uno": "y", "two": "z"}).variants] == ids
    changed = [*trimmed(tmp_path / "c", {"text": "w", "one": "y", "other": "z"}).variants]
    assert [place for place, name in enumerate(changed) if name not in ids] == [1]
    # How much of it pruning reads does not matter to a text that is read whole.
    fewer = trimmed(tmp_path / "d", {"text": "x", "one": "y", "other": "z"}, samples=9)
    assert [*fewer.variants][1] == ids[1]
    assert [variant.recipe for variant in first.variants.values()][1:3] == ["trim text", "trim one min_count=2"]


def test_paths_start_from_the_manifests_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"text": "x", "one": "y", "other": "z"}
    more = "  - {prune: wanda, sparsity: 0.5}\nruntime: {select: {source: 'path:other'}}\n"
    relative, absolute = (trimmed(folder, texts, more) for folder in (Path("a"), tmp_path / "a"))
    assert [*relative.variants] == [*absolute.variants]
    timed = {cell.variant.recipe for cell in relative.cells if cell.stage == "latency"}
    assert timed == {"dense", "trim other min_count=2, then magnitude/layer 50%"}, "selected as it is written"


def test_a_file_that_is_null_is_none_and_an_empty_item_among_texts_is_refused_with_its_line(tmp_path: Path) -> None:
    contents = {"text": "x", "one": "y", "other": "z"}
    plain, null = (
        [*trimmed(tmp_path, contents, f"  - {{shrink: l2, keep: 0.5{more}}}\n").variants]
        for more in ("", ", file: null, models: null")
    )
    assert plain == null
    with pytest.raises(ManifestError, match=r"mine\.yaml:13(.|\n)*an empty item in a list of texts"):
        trimmed(tmp_path, contents, "  - {recover: finetune, source: [null, 'path:one']}\n")


@pytest.mark.parametrize("step", ["trim: corpus", "recover: distill"])
def test_a_vocabulary_or_a_training_is_not_of_a_benchmark_s_own_text(step: str, tmp_path: Path) -> None:
    more = "benchmarks:\n  encoder: [{task: sst2_probe}]\n"
    own = f"  - {{{step}, source: '{all_tasks()['sst2_probe'].data[0]}'}}\n"
    with pytest.raises(ManifestError, match="its text is part of `sst2_probe`"):
        trimmed(tmp_path, {"text": "x", "one": "y", "other": "z"}, own + more)


def test_a_training_is_known_by_its_text_and_takes_time_by_its_tokens(tmp_path: Path) -> None:
    contents = {"text": "x", "one": "y", "other": "z"}
    more = "  - {recover: distill, source: 'path:one', tokens: [1000, 50000000]}\n  - {recover: finetune}\n"
    first = trimmed(tmp_path / "a", contents, more)
    same = trimmed(tmp_path / "b", contents, more, samples=9)
    changed = trimmed(tmp_path / "c", {**contents, "one": "w"}, more)
    ids = [[variant.id for variant in plan.variants.values()][-3:] for plan in (first, same, changed)]
    assert ids[0] == ids[1]
    assert [one == other for one, other in zip(ids[0], ids[2], strict=True)] == [False, False, True]
    assert [variant.recipe for variant in first.variants.values()][-3:] == [
        "distill one tokens=1000", "distill one tokens=50000000", "finetune text",
    ]  # fmt: skip
    sizes = {"plain": ModelSize(10_000_000, 20_000_000)}
    making = [job for job in jobs(first, first.cells, lambda _: False) if job.makes]
    made = {job.makes[0].recipe: job_seconds(job, sizes) for job in making}
    trained = made["finetune text"] - made["trim text"]  # on the default million tokens
    assert made["distill one tokens=1000"] == pytest.approx(50 * trained, rel=0.1)  # both in one pass


def test_a_calibration_s_columns_come_with_its_text(tmp_path: Path) -> None:
    """What an encoder-decoder writes is a part of it: without the target its tokens would go."""
    (tmp_path / "pairs.jsonl").write_text('{"word": "cat", "sounds": "K AE T"}\n')
    (tmp_path / "plain.txt").write_text("cat\n")
    text = TRIMMED.format(calibration="pairs.jsonl", one="plain.txt", other="plain.txt", samples=1)
    more = "  - {trim: corpus, field: sounds}\n"
    plan = written(tmp_path, text.replace("samples: 1", "field: word, target: sounds") + more).plan
    steps = [variant.steps[0].settings for variant in plan.variants.values() if len(variant.steps) == 1]
    assert [(own.field, own.target) for own in steps] == [("word", "sounds"), (None, None), ("sounds", "sounds")]
