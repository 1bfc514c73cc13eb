"""What harmless input costs, command by command; a hostile one is compared with it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from studies.hostile import benign
from studies.hostile.sandbox import REPOSITORY, Box, Step

MANIFEST = """version: 1
models: [{name: tiny, source: path:model, family: decoder}]
variants: [{prune: magnitude, sparsity: 0.5}]
storage: {formats: [dense, packed]}
"""


def commands(box: Box) -> Iterator[Step]:
    """Every command that a case is compared with, each once; the first pack compiles what the second one uses."""
    model = box.model()
    bert = benign.model(box.input / "bert", benign.BERT)
    records(box.input / "records")
    pairs(box.input / "pairs.jsonl")
    text(box.input / "text.jsonl")
    (box.input / "tiny.yaml").write_text(MANIFEST)
    pack_wheel(box)
    ledger = box.out / "ledger.duckdb"
    yield box.do("pack", model, "--out", box.out / "first", like="compile")
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("pack", model, "--format", "archive", "--out", box.out / "archive", like="archive")
    yield box.do("unpack", box.out / "packed", "--out", box.out / "unpacked")
    yield box.do("inspect", model)
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")
    yield calibrate(box, model, box.input / "text.jsonl", out="calibrated")
    yield score(box, bert, box.input / "pairs.jsonl")
    yield box.do("ingest", box.input / "records", "--ledger", ledger)
    yield box.do("sql", "select model, task, score from results", "--ledger", ledger)
    yield box.do("status", "--ledger", ledger)
    yield box.do("figures", "size", "--format", "png", "--out", box.out / "figures", "--ledger", ledger)
    yield box.do("report", "--out", box.out / "report.md", "--figures", box.out / "figures", "--ledger", ledger)
    yield box.do("export", box.out / "tables", "--to", "csv", "--ledger", ledger)
    yield box.do("plan", box.input / "tiny.yaml", "--ledger", box.out / "run/ledger.duckdb")
    yield box.do("run", box.input / "tiny.yaml", "--ledger", box.out / "run/ledger.duckdb")
    for engine in ("hf", "deepspeed"):
        yield box.do("measure", model, "--engine", engine, *FEW, like=engine)
    yield wheel(box, box.input / "index/hostile-1.0-py3-none-any.whl")


HALF = "prune: magnitude, sparsity: 0.5"
FEW = ("--samples", "4", "--prompt", "8", "--generate", "2")
"""As little as `measure` allows."""


def calibrate(box: Box, model: Path, source: Path, *more: str, out: str = "pruned") -> Step:
    """Prune behind calibration text: the model is built by transformers, its tokenizer reads the text."""
    text = f"source: {json.dumps(f'path:{source}')}, field: text, samples: 4, length: 16"
    words = ("prune: wanda, sparsity: 0.5", "--calibration", text, *more)
    return box.do("apply", model, *words, "--out", box.out / out, like="calibrate")


def score(box: Box, model: Path, source: Path) -> Step:
    """Score an encoder on sentence pairs from a file."""
    return box.do("score", model, "--task", "stsb_sts", "--data", f"path:{source}")


def records(folder: Path) -> Path:
    """A folder of records that `ingest` and `status` read."""
    folder.mkdir(parents=True)
    for record in benign.records(REPOSITORY):
        write(folder, record)
    return folder


def write(folder: Path, record: dict[str, object]) -> Path:
    """Store one record under the name that a run gives it."""
    plan = record.get("kind") == "plan"
    name = f"plan-{record['manifest']}" if plan else f"{record['cell_id']}.{record['status']}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path


def pairs(path: Path) -> Path:
    """Sentence pairs with a gold score."""
    others = ("a dog ran", "the cat on mat", "it")
    rows = [{"sentence1": "the cat sat", "sentence2": others[place % 3], "score": place * 0.6} for place in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text(path: Path) -> Path:
    """Calibration text."""
    rows = [{"text": "the cat sat on the mat and the dog ran " * 20 + str(place)} for place in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


DIST = "hostile-1.0.dist-info"


def pack_wheel(box: Box, fill: Callable[[zipfile.ZipFile, Box], object] | None = None) -> Path:
    """A wheel of a harmless model in ``hostile/model/``, and what ``fill`` adds."""
    path = box.input / "index/hostile-1.0-py3-none-any.whl"
    path.parent.mkdir()
    model = benign.model(box.input / "plain")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(model.iterdir()):
            archive.write(file, f"hostile/model/{file.name}")
        archive.writestr(f"{DIST}/METADATA", "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n")
        archive.writestr(f"{DIST}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        if fill:
            fill(archive, box)
        archive.writestr(f"{DIST}/RECORD", "")
    return path


def wheel(box: Box, path: Path, inner: str = "hostile/model/", digest: str | None = None) -> Step:
    """Inspect the model inside a wheel, which pip finds in the folder that it lies in."""
    box.environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(path.parent), "PIP_CONFIG_FILE": "/dev/null"}
    digest = digest or hashlib.sha256(path.read_bytes()).hexdigest()
    return box.do("inspect", f"wheel:hostile==1.0!{inner}#sha256={digest}", like="wheel")
