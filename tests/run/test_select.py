"""Which cells --only selects."""

from pathlib import Path

import pytest

from sparsebench.plan.cells import Cell
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.run.select import DecisionKind, decisions
from tests.plan.planning import RANDOM

MANIFEST = f"""\
{RANDOM}structure: {{}}
storage: null
runtime: {{engines: [hf], workloads: [{{batch: 1, prompt: 8, generate: 4}}], samples: 20, dtype: float32}}
"""


def left(folder: Path, entries: list[str], *only: tuple[str, str]) -> list[Cell]:
    """The cells of a plan of these variants that ``only`` does not leave out."""
    (folder / "m.yaml").write_text(MANIFEST + "variants:\n" + "".join(f"  - {one}\n" for one in entries))
    found = decisions(prepare(PlanRequest(folder / "m.yaml", only=only)), folder / "records", False)
    return [one.cell for one in found if one.kind != DecisionKind.LEFT_OUT]


@pytest.mark.parametrize(
    ("key", "word", "met"),
    [
        ("keep_zeros", "true", {"wanda"}), ("keep_zeros", "False", {"magnitude"}), ("keep_zeros", "1", set[str]()),
        ("sparsity", "0.50", {"wanda"}), ("sparsity", "half", set[str]()), ("pattern", "1:4", {"magnitude"}),
        ("source", "path:text.txt", {"finetune"}), ("source", "path:other.txt", set[str]()),
    ],
)  # fmt: skip
def test_a_setting_is_meant_as_a_manifest_writes_it(key: str, word: str, met: set[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n")
    steps = "{prune: wanda, sparsity: 0.5, keep_zeros: true}", "{prune: magnitude, pattern: '1:4'}"
    found = left(
        tmp_path, [*steps, "{recover: finetune, source: 'path:text.txt'}"], (key, word), ("stage", "structure")
    )
    assert {cell.variant.steps[0].name for cell in found} == met


def test_cells_that_lack_a_key_match_none_of_its_values(tmp_path: Path) -> None:
    (tmp_path / "mask.bin").write_bytes(b"1")
    for value, met in (("hf", {"latency", "memory"}), ("None", set[str]())):
        assert {cell.stage for cell in left(tmp_path, ["{prune: mask, file: mask.bin}"], ("engine", value))} == met
