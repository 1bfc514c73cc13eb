"""Reports over ledgers with little in them: sentences that are generated from few rows still say something."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sparsebench import records
from sparsebench.ledger.store import Ledger
from sparsebench.plan.cells import Cell
from sparsebench.report import build
from tests.ledger import samples
from tests.report.reading import whole

ENCODER = [{"name": "mini", "source": "path:mini", "family": "encoder", "dtype": "float32"}]
DECODER = [{"name": "smol", "source": "path:smol", "family": "decoder", "dtype": "bfloat16"}]
OWN = {"encoder": [{"task": "classify", "source": "path:reviews.csv#content=ab", "name": "classify-reviews"}]}
ZEROS = {"prune": "magnitude", "sparsity": [0.3, 0.5, 0.9]}
GLOBAL = {"prune": "magnitude", "granularity": "global", "sparsity": 0.5}
INT8, INT4 = {"quantize": "int8"}, {"quantize": "int4"}
TIMED = {"runtime": {"engines": ["hf"], "workloads": [{"prompt": 32, "generate": 8}]}}
UNTIMED: dict[str, Any] = {"runtime": None}
CHOICES = {"decoder": [{"task": "piqa", "limit": 200}]}
RETRIEVAL = {"encoder": [{"task": "sciq_retrieval", "limit": 200}]}
SHAPES: dict[str, dict[str, Any]] = {
    "bits only": {"models": DECODER, "variants": [INT8, INT4], "benchmarks": CHOICES, **TIMED},
    "own data only": {"models": ENCODER, "variants": [ZEROS, INT8], "benchmarks": OWN, **TIMED},
    "no scores": {"models": ENCODER, "variants": [ZEROS], "benchmarks": {}, **TIMED},
    "sizes only": {"models": DECODER, "variants": [INT8], "benchmarks": {}, "structure": None, **UNTIMED},
    "dense only": {"models": ENCODER, "variants": [], "benchmarks": RETRIEVAL, **TIMED},
    "global and bits": {"models": ENCODER, "variants": [GLOBAL, INT4], "benchmarks": OWN, **UNTIMED},
}
NONSENSE = {
    "a missing value": r"\b(None|nan|NaN|inf|NULL|undefined)\b",
    "marks without words between them": r"[;,:] ?[;,.]|\(\s*\)|\(\s*[;,]|\s[,;.](\s|$)|\.\.(?!\.)",
    "all of one": r"\ball 1\b",
    "a change of nothing": r"\b0(\.0+)?% of the answers|\bchanges 0\b",
    "bits with a sparsity": r"\bint[48] at \d",
    "an empty emphasis": r"\*\*\s*\*\*|``",
    "an empty item": r"(?m)^\s*[-*]\s*$",
    "two words glued": r"[a-z]\.[A-Z][a-z]",
}


def result(cell: Cell, answers: dict[str, Any]) -> Any:
    """A sample's result. int8 answers as dense does; int4 rounds weights of some blocks to zero. Both are smaller."""
    made, encoding = samples.result(cell), cell.variant.encoding
    if cell.stage == "benchmarks":
        answers.setdefault(cell.settings["task"], made)
        return answers[cell.settings["task"]] if encoding == "int8" else made
    if cell.stage == "storage" and encoding:
        scale = {"int8": 2, "int4": 4}[encoding]
        return replace(made, sizes=tuple(replace(size, bytes=size.bytes // scale) for size in made.sizes))
    if cell.stage == "structure" and encoding == "int4":
        tensors = [replace(tensor, zeros=tensor.count // 4 * ((tensor.layer or 0) % 2)) for tensor in made.tensors]
        return replace(made, tensors=tuple(tensors))
    return made


@pytest.mark.parametrize("shape", SHAPES)
def test_no_sentence_says_nonsense(shape: str, tmp_path: Path) -> None:
    """Read is the report without tables, code and links' targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(samples.TASKS, "classify-reviews", ("acc", 0.5, 0.85))
        asked = {key: value for key, value in SHAPES[shape].items() if key != "variants"}
        experiment = samples.manifest(**asked).model_copy(update={"variants": SHAPES[shape]["variants"]})
        plan = samples.plan(experiment, "small")
        answers: dict[str, Any] = {}
        results = [asdict(result(cell, answers)) for cell in plan.cells]
        outcomes = [records.CellOutcome("done", made, None, samples.START, 1.0) for made in results]
    made = [samples.plan_record(plan)]
    made += [records.make(cell, "small", outcome, "cpu") for cell, outcome in zip(plan.cells, outcomes, strict=True)]
    Ledger(tmp_path / "ledger.duckdb").ingest(json.loads(json.dumps(made)))
    written = whole(build(tmp_path / "ledger.duckdb", tmp_path / "report.md", tmp_path / "figures"))
    prose = re.sub(r"(?ms)^```.*?^```|^\|.*?$|<!--.*?-->", "", written)
    text = re.sub(r"\]\([^)]*\)|<[^>]*>|`[^`]+`", "]", prose)
    assert len(text) > 500, "the check must see a report"
    for kind, pattern in NONSENSE.items():
        found = [text[max(0, match.start() - 80) : match.end() + 40] for match in re.finditer(pattern, text)]
        assert not found, f"{kind}: {found[:3]}"


def test_no_advice_rests_on_what_nobody_measured(tmp_path: Path) -> None:
    """Without scores nothing passes the gate, so no choice for a CPU is known but what the literature gives (**L**)."""
    experiment = samples.manifest(models=DECODER, variants=[ZEROS], benchmarks={}, **TIMED)
    Ledger(tmp_path / "ledger.duckdb").ingest(samples.sample(experiment))
    written = whole(build(tmp_path / "ledger.duckdb", tmp_path / "report.md", tmp_path / "figures"))
    section = written.partition("## 2. ")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[1] for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(cells) > 5 and not [cell for cell in cells if "not measured" not in cell and "**L**" not in cell]


@pytest.mark.parametrize("others", [[], [ZEROS]], ids=["masks alone", "masks and others"])
@pytest.mark.parametrize("measured", [("storage",), ("structure", "storage", "benchmarks", "latency", "memory")])
def test_masks_whose_making_is_not_recorded_have_no_sparsity_yet(
    measured: tuple[str, ...], others: list[Any], tmp_path: Path
) -> None:
    """Their sparsity is what the masks give, which the record of the making says."""
    masks = {"prune": "mask", "file": f"path:m.safetensors#sha256={'0' * 64}"}
    wanted: dict[str, Any] = {"benchmarks": {"decoder": [{"task": "piqa", "limit": 200}]}, **TIMED}
    found = samples.sample(samples.manifest(models=DECODER, variants=[masks, *others], **wanted))
    kept = [
        record
        for record in found
        if record.get("stage") in (None, *measured) or "mask" not in record["variant"]["recipe"]
    ]
    assert len(kept) < len(found)
    Ledger(tmp_path / "ledger.duckdb").ingest(kept)
    written = whole(build(tmp_path / "ledger.duckdb", tmp_path / "report.md", tmp_path / "figures"))
    assert "mask" in written and not re.search(
        NONSENSE["a missing value"], re.sub(r"(?ms)^```.*?^```|`.*?`", "", written)
    )
