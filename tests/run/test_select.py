"""Which cells --only selects."""

from pathlib import Path

import pytest
import yaml

from sparsebench.plan.cells import Cell
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.run.select import DecisionKind, decisions
from tests.plan.planning import RANDOM, planned

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


CHAIN = "[{prune: magnitude, sparsity: 0.5}, {prune: random, sparsity: 0.9, keep_zeros: true}]"
BOTH = "[{prune: magnitude, sparsity: 0.5}, {quantize: int4, group: 16}]"
SELECTIONS = [
    ({"prune": "magnitude", "sparsity": 0.9}, {"magnitude 90%"}),
    ({"prune": "magnitude", "sparsity": 0.5}, {"chain", "both"}),
    ({"prune": "random", "sparsity": 0.9}, {"chain"}),
    ({"prune": "random", "sparsity": 0.5}, set[str]()),
    ({"prune": "magnitude", "quantize": "int4"}, {"both"}),
    ({"prune": "magnitude", "quantize": "int4", "sparsity": 0.5}, {"both"}),
    ({"prune": "magnitude", "group": 16}, {"both"}),
    ({"sparsity": 0.9}, {"magnitude 90%", "chain"}),
]


@pytest.mark.parametrize(
    ("method", "sparsity", "met"), [("random", "0.9", 1), ("random", "0.5", 0), ("magnitude", "0.5", 1)]
)
def test_a_setting_beside_a_method_counts_at_the_step_of_that_name(
    method: str, sparsity: str, met: int, tmp_path: Path
) -> None:
    cells = left(tmp_path, [CHAIN, BOTH], ("method", method), ("sparsity", sparsity), ("stage", "structure"))
    assert len(cells) == met


@pytest.mark.parametrize(("wanted", "met"), SELECTIONS, ids=lambda value: str(sorted(value)))
@pytest.mark.parametrize("by", ["select", "--only"])
def test_a_setting_counts_at_the_step_whose_verb_is_named(
    by: str, wanted: dict[str, object], met: set[str], tmp_path: Path
) -> None:
    entries = {"magnitude 90%": "{prune: magnitude, sparsity: 0.9}", "chain": CHAIN, "both": BOTH}
    names = dict(zip([(1, 0.9), (2, 0.9), (2, None)], entries, strict=True))
    if by == "select":
        plan = planned(variants=[*map(yaml.safe_load, entries.values())], runtime={"select": wanted})
        cells = [cell for cell in plan.cells if cell.stage == "memory"]
    else:
        pairs = [(key, str(value)) for key, value in wanted.items()]
        cells = left(tmp_path, [*entries.values()], *pairs, ("stage", "memory"))
    steps = [cell.variant.steps for cell in cells if cell.variant.steps]
    assert {names[len(chain), chain[-1].settings.record().get("sparsity")] for chain in steps} == met
