"""Hostile inputs whose harm would be something that is opened, asked, run or shown: each gives the commands that take it."""

import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from sparsebench.ledger.store import Ledger
from tests.adversarial import benign
from tests.adversarial.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
Commands = Iterator[tuple[object, ...]]
CASES: dict[str, Callable[[Sandbox], Commands]] = {}
HALF = "prune: magnitude, sparsity: 0.5"
FEW = ("--samples", 4, "--prompt", 8, "--generate", 2)
"""As little as `measure` allows."""


def cases(name: str, *variants: Any, names: list[str] | None = None) -> Callable[[Any], Any]:
    """Register a case for each of ``variants``, which is given to the function."""

    def register(build: Callable[..., Commands]) -> Callable[..., Commands]:
        for label, variant in zip(names or map(str, variants), variants, strict=True):
            CASES[f"{name} {label}".strip()] = lambda box, variant=variant: build(box, variant)
        return build

    return register


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def pickled(box: Sandbox, archive: bool = True) -> bytes:
    """A pickle with a payload, bare or in the archive that torch writes."""
    bare = pickle.dumps({"model.norm.weight": Payload(box.marker)}, protocol=2)
    if not archive:
        return bare
    with zipfile.ZipFile(file := io.BytesIO(), "w") as packed:
        packed.writestr("archive/data.pkl", bare)
        packed.writestr("archive/version", "3\n")
        packed.writestr("archive/byteorder", "little")
    return file.getvalue()


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file, which is made where it is not there."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


def calibrated(box: Sandbox, model: Path, text: Path | None = None) -> tuple[object, ...]:
    """Prune behind calibration text: transformers builds the model, its tokenizer reads the text."""
    rows = [{"text": f"the cat sat on the mat and the dog ran {number} " * 20} for number in range(8)]
    text = text or box.write("text.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    read = f"source: path:{text}, field: text, samples: 4, length: 16"
    return "apply", model, "prune: wanda, sparsity: 0.5", "--calibration", read, "--out", box.out / "pruned"


@cases("a pickle called", ("pytorch_model.bin", True), ("pytorch_model.bin", False), ("model.safetensors", True))
def pickled_weights(box: Sandbox, how: tuple[str, bool]) -> Commands:
    model = benign.model(box.input / "model", weights=False)
    (model / how[0]).write_bytes(pickled(box, how[1]))
    yield "apply", model, HALF, "--out", box.out / "pruned"


@cases("a pickle that an index names:", "pytorch_model.bin.index.json", "model.safetensors.index.json")
def pickled_shard(box: Sandbox, index: str) -> Commands:
    model = benign.model(box.input / "model", weights=False)
    (model / "weights.bin").write_bytes(pickled(box))
    (model / index).write_text(json.dumps({"weight_map": {"model.norm.weight": "weights.bin"}}))
    yield "apply", model, HALF, "--out", box.out / "pruned"


@cases("pickles beside the weights, engine", "deepspeed", "hf")
def pickles_beside(box: Sandbox, engine: str) -> Commands:
    model = box.model()
    names = (
        "pytorch_model.bin training_args.bin optimizer.pt scheduler.pt rng_state.pth tokenizer.pkl consolidated.00.pth"
        " adapter_model.bin tf_model.h5 flax_model.msgpack global_step1/mp_rank_00_model_states.pt"
    )
    (model / "global_step1").mkdir()
    (model / "latest").write_text("global_step1")
    for name in names.split():
        (model / name).write_bytes(pickled(box))
    yield calibrated(box, model)
    yield "measure", model, "--engine", engine, *FEW


@cases("a pickle as text:", "text.pkl", "text.pt", "text.npy")
def pickled_text(box: Sandbox, name: str) -> Commands:
    (box.input / name).write_bytes(pickled(box, False))
    yield calibrated(box, box.model(), box.input / name)


@cases(
    "a chat template",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "{% include 'SECRET' %}",
    names=["that leaves the sandbox", "that never ends", "that includes a file"],
)
def chat_template(box: Sandbox, template: str) -> Commands:
    model = box.model()
    path = box.write("model/chat_template.jinja", template)
    edit(model / "tokenizer_config.json", chat_template=path.read_text())
    yield calibrated(box, model)


@cases("a tokenizer", "of files outside", "of a class that takes a pickle", "of a class of Python", "that explodes")
def tokenizer(box: Sandbox, kind: str) -> Commands:
    model, out = box.model(), str(box.canary)
    classes = {"of a class that takes a pickle": "TransfoXLTokenizer", "of a class of Python": "os.system"}
    if kind == "of files outside":
        edit(model / "tokenizer_config.json", vocab_file=out, tokenizer_file=out, merges_file=out, name_or_path=out)
        edit(model / "special_tokens_map.json", additional_special_tokens=[out])
        edit(model / "config.json", _name_or_path=str(box.outside))
    elif kind == "that explodes":
        pattern = {"type": "Split", "pattern": {"Regex": "(a+)+b|(a|a)+c"}, "behavior": "Isolated", "invert": False}
        edit(model / "tokenizer.json", pre_tokenizer=pattern)
        yield calibrated(box, model, box.write("a.jsonl", json.dumps({"text": "a" * 4000 + " the cat " * 400})))
        return
    else:
        for name in ("vocab.pkl", "vocab.bin"):
            (model / name).write_bytes(pickled(box, name == "vocab.bin"))
        edit(model / "tokenizer_config.json", tokenizer_class=classes[kind])
    yield calibrated(box, model)


@cases("names with escapes in", "a tensor", "model_type", "a file's name")
def escapes(box: Sandbox, where: str) -> Commands:
    name = "\x1b[2J\x1b]0;hostile\x07"
    model = box.model(**({"model_type": name} if where == "model_type" else {}))
    if where == "a tensor":
        weights = model / "model.safetensors"
        save_file({**load_file(weights), name: np.ones(8, np.float32)}, weights)
    elif where == "a file's name":
        (model / f"{name}.txt").write_text("x")
    yield "inspect", model, "--tensors"
    yield "pack", model, "--out", box.out / "packed"
    yield calibrated(box, model)


@cases("code of the model's own, type", "bert", "evil")
def own_code(box: Sandbox, model_type: str) -> Commands:
    """It stands in every place that transformers or sentence-transformers would take it from."""
    model = benign.model(box.input / "model", {**benign.BERT, "model_type": "bert"})
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        box.write(f"model/{name}", "open('MARKER', 'w')\nclass Evil:\n    pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoFeatureExtractor")
    code = dict.fromkeys(classes, "modeling_evil.Evil")
    edit(model / "config.json", model_type=model_type, auto_map=code, _attn_implementation="evil/kernels")
    pair = ["tokenization_evil.Evil", "tokenization_evil.Evil"]
    # AutoTokenizer takes any name of transformers for a tokenizer's: an auto class would ask for consent to code.
    edit(model / "tokenizer_config.json", tokenizer_class="AutoFeatureExtractor", auto_map={"AutoTokenizer": pair})
    edit(model / "generation_config.json", custom_generate="custom_generate/generate.py")
    edit(model / "preprocessor_config.json", auto_map=code, feature_extractor_type="Evil")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "modeling_evil.Transformer"}]
    (model / "modules.json").write_text(json.dumps(modules))
    pairs = [{"sentence1": f"cat {n}", "sentence2": "dog" * (n % 3 + 1), "score": n} for n in range(6)]
    data = box.write("pairs.jsonl", "".join(json.dumps(pair) + "\n" for pair in pairs))
    yield (*calibrated(box, model), "--family", "encoder")
    yield "score", model, "--family", "encoder", "--task", "stsb_sts", "--data", f"path:{data}"
    yield "measure", model, "--family", "encoder", "--engine", "hf", "--samples", 4, "--prompt", 8
    yield "pack", model, "--out", box.out / "packed"
    left = json.loads((box.out / "packed" / "sparsebench.json").read_text())["left_out"]
    assert {"tokenizer_config.json: auto_map", "custom_generate/generate.py"} <= {*left}
    assert not [*box.out.rglob("*.py")]


@cases(
    "modules of the model's folder", "torch numpy json duckdb yaml safetensors sitecustomize transformers sparsebench"
)
def shadows(box: Sandbox, names: str) -> Commands:
    """A job is a process of its own, started in the current folder."""
    box.work = model = box.model()
    for name in names.split():
        (model / f"{name}.py").write_text(f"open({str(box.marker)!r}, 'w')\n")
    yield "measure", ".", "--engine", "hf", *FEW


@cases(
    "SQL:",
    "select content from read_text('SECRET')", "copy (select 1) to 'MARKER'",
    "call enable_logging(storage = 'file', storage_path = 'OUTSIDE/planted')", "from box",
    "select " + "(" * 10_000 + "1" + ")" * 10_000, "select '\0'", "select '\udcff'", "select '\x1b[2J' as \"\x1b]0;x\x07\"",
    names=["a secret", "a copy", "a log", "a variable of Python's", "nested", "'\\0'", "half of a character", "escapes"],
)  # fmt: skip
def query(box: Sandbox, sql: str) -> Commands:
    Ledger(box.out / "ledger.duckdb").ingest(benign.records(ROOT)[:2])
    yield "sql", "--file", box.write("query.sql", sql), "--ledger", box.out / "ledger.duckdb", "--timeout", 1


@cases(
    "a figure:",
    "select content as s, 1 as x, 2 as y from read_text('SECRET');",
    "select range as x, 1 as y, 's' || range as s from range(5000);",
    "select 1 as x, 2 as y, '$\\frac{a$ \\input{SECRET}' as s;",
    names=["a secret", "5,000 series", "mathtext"],
)
def figure(box: Sandbox, sql: str) -> Commands:
    ledger = box.out / "ledger.duckdb"
    Ledger(ledger).ingest(benign.records(ROOT)[:2])
    head = "-- title: t\n-- kind: bars\n-- x: x\n-- y: y\n-- series: s\n\n"
    box.work = box.write("project/figures/own.sql", head + sql).parents[1]
    yield "figures", "own", "--format", "svg", "--out", box.out / "pictures", "--ledger", ledger


@cases("a figure that is a link to", "SECRET")
def linked_figure(box: Sandbox, _: str) -> Commands:
    box.work = box.input
    (box.input / "figures").mkdir()
    (box.input / "figures/own.sql").symlink_to(box.canary)
    yield "figures", "--list"


@cases("a lock that", "leads out", "is a link")
def lock(box: Sandbox, how: str) -> Commands:
    manifest = box.write("m.yaml", "version: 1\nmodels: [{name: m, source: hf:a/b@main, family: decoder}]\n")
    if how == "is a link":
        (box.input / "m.lock").symlink_to(box.canary)
    else:
        box.write("m.lock", '{"hf:a/b@main": "../../../../outside"}')
    yield "plan", manifest, "--offline", "--ledger", box.out / "ledger.duckdb"


@cases("a wheel", "with code", "that is to be built")
def wheel(box: Sandbox, how: str) -> Commands:
    """pip finds it in the folder that it lies in, and neither builds nor installs it."""
    folder = box.input / "index"
    folder.mkdir()
    code = f"open({str(box.marker)!r}, 'w')\n"
    if how == "with code":
        path, dist = folder / "hostile-1.0-py3-none-any.whl", "hostile-1.0.dist-info"
        names = ("setup.py", "hostile/__init__.py", "sitecustomize.py", "hostile-1.0.data/scripts/run", "conftest.py")
        files = {
            **dict.fromkeys(names, code),
            "hostile.pth": f"import os; {code}",
            "hostile/model/config.json": json.dumps(benign.LLAMA),
            f"{dist}/entry_points.txt": "[sparsebench.methods]\nhostile = hostile:x\n",
            f"{dist}/METADATA": "Metadata-Version: 2.1\nName: hostile\nVersion: 1.0\n",
            f"{dist}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{dist}/RECORD": "",
        }
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        path = folder / "hostile-1.0.tar.gz"
        setup = f"{code}from setuptools import setup\nsetup(name='hostile', version='1.0')\n".encode()
        with tarfile.open(path, "w:gz") as source:
            info = tarfile.TarInfo("hostile-1.0/setup.py")
            info.size = len(setup)
            source.addfile(info, io.BytesIO(setup))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    yield "inspect", f"wheel:hostile==1.0!hostile/model/#sha256={digest}"
