"""What changes an id and what does not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sparsebench import environment
from sparsebench.benchmarks import all_tasks
from sparsebench.manifest.schema import Manifest, ManifestCalibration
from sparsebench.plan.expand import DataInfo, Plan, expand, with_defaults
from sparsebench.runtime.engines import engines
from tests.plan.planning import CALIBRATED, ids, planned

pytestmark = pytest.mark.usefixtures("every_precision")


def test_ids_do_not_depend_on_what_cannot_change_a_result() -> None:
    base = planned()
    renamed = planned(models=[{"name": "other", "source": "path:m", "family": "decoder"}])
    assert len(base.cells) == len(ids(base))
    assert not ids(base) - ids(planned(name="another", ledger="x.duckdb", work_dir="elsewhere"))
    assert base.dense["m"].id == renamed.dense["other"].id


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"revision": "r2"}, {"make", "structure", "storage", "benchmarks", "latency", "memory"}),
        ({"structure": {"relative": [0.3]}}, {"structure"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "limit": 5}]}}, {"benchmarks"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "batch": 8}]}}, {"benchmarks"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "batch": "auto"}]}}, set()),
        ({"runtime": {"ranks": [1, 2], "select": {"sparsity": [0.9]}, "samples": 8}}, {"latency"}),
        ({"storage": {"formats": ["dense"]}}, {"storage"}),
        ({"storage": {"keep": "none"}}, set()),
    ],
)
def test_a_change_moves_the_cells_that_it_can_touch(changes: dict[str, object], moved: set[str]) -> None:
    base, other = planned(), planned(**changes)
    fresh = ids(other) - ids(base)
    assert {cell.stage for cell in other.cells if cell.id in fresh} == moved


def test_the_order_in_which_formats_and_thresholds_are_written_moves_no_id() -> None:
    base = planned(structure={"absolute": [0.01, 0.1]}, storage={"formats": ["dense", "packed"]})
    other = planned(structure={"absolute": [0.1, 0.01, 0.1]}, storage={"formats": ["packed", "dense", "dense"]})
    assert ids(base) == ids(other)


def change(patch: pytest.MonkeyPatch, library: str) -> None:
    """Have another version of a library, and the same of all others."""
    true = environment.major_minor
    patch.setattr(environment, "major_minor", lambda name: "99.0" if name == library else true(name))


FORMATS = [{"storage": {"formats": ["dense", "packed", *more]}} for more in ([], ["archive"])]
CHANGES: list[tuple[Callable[[pytest.MonkeyPatch], None], Any, set[str]]] = [
    (lambda patch: change(patch, "zstandard"), FORMATS[0], set()),
    (lambda patch: change(patch, "zstandard"), FORMATS[1], {"storage"}),
    (
        lambda patch: patch.setitem(engines(), "sparse", replace(engines()["sparse"], version=1000)),
        {"runtime": {"engines": ["hf", "sparse"], "ranks": 1}},
        {"latency sparse", "memory sparse"},
    ),
    (lambda patch: patch.setattr("sparsebench.runtime.MEMORY_VERSION", 1000), {}, {"memory deepspeed"}),
    (
        lambda patch: patch.setitem(all_tasks(), "piqa", replace(all_tasks()["piqa"], version=1000)),
        {},
        {"benchmarks piqa"},
    ),
]


@pytest.mark.parametrize(("make", "asked", "moved"), CHANGES)
def test_what_changed_is_measured_anew_and_nothing_else(
    make: Callable[[pytest.MonkeyPatch], None], asked: Any, moved: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str, set[str]]:
        """The ids of each stage, and of each engine or task of it."""
        ids_of: dict[str, set[str]] = {}
        for cell in planned(**asked).cells:
            name = f"{cell.stage} {cell.settings.get('engine', cell.settings.get('task', ''))}".strip()
            ids_of.setdefault(name, set()).add(cell.id)
        return ids_of

    before = found()
    make(monkeypatch)
    after = found()
    assert {name for name, ids_of in after.items() if ids_of.isdisjoint(before[name])} == moved
    assert {name for name, ids_of in after.items() if ids_of != before[name]} == moved


@pytest.mark.parametrize(
    "calibration", [{"samples": 64}, {"length": 512}, {"source": "path:other.txt"}, {"source": "path:x", "field": "f"}]
)
def test_calibration_moves_what_reads_it_and_nothing_else(calibration: dict[str, object]) -> None:
    base, moved = (planned(variants=CALIBRATED, **more) for more in ({}, {"calibration": calibration}))
    kept = ids(base) & ids(moved)
    assert {cell.variant.recipe for cell in base.cells if cell.id in kept} == {"dense", "magnitude/layer 50%"}


def test_the_text_itself_is_part_of_a_calibrated_id() -> None:
    content = {"version": 1, "models": [{"name": "m", "source": "path:m", "family": "decoder"}], "variants": CALIBRATED}
    manifest = Manifest.model_validate(content)
    one, other = (expand(manifest, "test", {"m": "r1"}, DataInfo(text)) for text in ("a", "b"))
    changed = [cell.variant for cell in one.cells if cell.id not in ids(other)]
    uniform = {variant.method for variant in changed if variant.pruning_setting("allocation") == "uniform"}
    assert uniform == {"wanda", "sparsegpt"}


def test_keeping_zeros_is_another_variant_and_not_keeping_them_the_one_that_it_was() -> None:
    def made(second: dict[str, object]) -> Plan:
        return planned(variants=[[{"prune": "magnitude", "sparsity": 0.5}, {"prune": "wanda", **second}]], runtime=None)

    plain, said, kept = (made({"sparsity": 0.7, **more}) for more in ({}, {"keep_zeros": False}, {"keep_zeros": True}))
    assert ids(plain) == ids(said)
    (moved,) = {cell.variant.recipe for cell in kept.cells if cell.id not in ids(plain)}
    assert moved == "magnitude/layer 50%, then wanda/row 70% of what is left"
    every = plain, kept, made({"pattern": "2:4", "keep_zeros": True})
    last = [next(reversed(plan.variants.values())) for plan in every]
    assert [variant.record()["sparsity"] for variant in last] == [0.7, 0.85, None]


def test_hyperparameters_are_part_of_an_id_where_they_are_not_the_defaults() -> None:
    def makings(**more: object) -> set[str]:
        return ids(planned(variants=[{"prune": "sparsegpt", "sparsity": 0.5, **more}]), "make")

    assert makings() == makings(damping=0.01)
    assert not makings() & makings(damping=0.1)
    assert len(makings(damping=[0.01, 0.1, 1.0], keep_zeros=[False, True])) == 6


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "scipy"])
def test_libraries_move_what_they_can_change(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(variants=CALIBRATED, runtime=None)
    change(monkeypatch, library)
    after = planned(variants=CALIBRATED, runtime=None)
    moved = {cell.variant.method for cell in after.cells if cell.stage == "make" and cell.id not in ids(before)}
    assert moved >= {"wanda", "sparsegpt"}
    plain = {cell.id for cell in after.cells if cell.variant.recipe == "magnitude/layer 50%" and cell.stage == "make"}
    assert (plain <= ids(before)) == (library != "torch")


def test_where_a_calibration_text_lies_is_told_as_the_manifest_says_it() -> None:
    """Not from the root of the file system: records are published."""
    named = ManifestCalibration(source="path:texts/words.jsonl")
    assert with_defaults(named, 0).source == "path:texts/words.jsonl"
