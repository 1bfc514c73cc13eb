"""Mutated manifests, configurations, weight files and GGUF files: each is taken, or refused by an error of ours."""

import copy
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench import bounded
from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import family_of
from sparsebench.models.modules.build import meta_model
from sparsebench.models.prepare import prepare
from sparsebench.models.shape.topology import parts
from sparsebench.plan.estimate import model_size
from sparsebench.plan.preflight import PlanRequest
from sparsebench.plan.preflight import prepare as preflight
from sparsebench.storage import pack, unpack
from tests.adversarial import benign
from tests.adversarial.watch import cheap
from tests.models.test_prepare import write_gguf

MANIFEST = """\
version: 1
seed: 0
models:
  - {name: tiny, source: path:model, family: decoder}
variants:
  - {prune: magnitude, sparsity: [0.5, 0.9]}
  - prune: wanda
    pattern: ["2:4", 4x4]
    sparsity: 0.5
  - [{prune: sparsegpt, sparsity: 0.5}, {quantize: int8}]
storage: {formats: [dense, packed], keep: packed}
runtime:
  engines: [hf, sparse]
  ranks: [1, 2]
  workloads:
    - {batch: 1, prompt: 8, generate: 4}
benchmarks:
  decoder:
    - {task: piqa, limit: 10}
structure: {absolute: [1e-3], relative: [0.1]}
"""
VALUES = st.sampled_from(
    [None, True, -1, 0, 7, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "\ud800", "\0", "../x", "x" * 300, [], {}, [None]]
)  # fmt: skip
WORDS = st.sampled_from(
    ["", "null", "-1", "1e400", ".nan", "[", "}", ": ", "- ", "&a ", "*a", "!x ", '"\\ud800"', "'", "\t", "x" * 300, "\u2028"]
)  # fmt: skip
BYTES = st.sampled_from([b"", b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"{", b'"', b":", b"9" * 30]) | st.binary(
    max_size=8
)


def spliced(data: st.DataObject, whole: Any, pieces: st.SearchStrategy[Any]) -> Any:
    """Once or twice something else in place of a few characters or bytes."""
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + data.draw(pieces) + whole[at + data.draw(st.sampled_from([0, 1, 2, 8, 64])) :]
    return whole


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every key and index of a JSON value, with what holds it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def changed(data: st.DataObject, tree: Any) -> bytes:
    """A JSON text with a value changed, gone or of another name; now and then with other bytes."""
    tree = copy.deepcopy(tree)
    holder, key = data.draw(st.sampled_from(list(places(tree))))
    match data.draw(st.sampled_from(["other", "gone", "renamed", "nested"])):
        case "gone":
            del holder[key]
        case "renamed" if isinstance(holder, dict):
            holder[data.draw(st.sampled_from(["", "x", "\ud800", "__metadata__"]))] = holder.pop(key)
        case "nested":
            holder[key] = [holder[key]]
        case _:
            holder[key] = data.draw(VALUES)
    text = json.dumps(tree).encode()
    return spliced(data, text, BYTES) if data.draw(st.integers(0, 5)) == 5 else text


def taken(act: Callable[[], object]) -> bool:
    """Whether something is done rather than refused, for little time and memory; any other error than ours is raised."""
    try:
        with cheap():
            act()
    except SparsebenchError as error:
        assert str(error).strip()  # noqa: PT017 - some raise nothing
        return False
    return True


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and what has been made of it once, so that all is imported."""
    folder = tmp_path_factory.mktemp("home")
    benign.model(folder / "model")
    (folder / "m.yaml").write_text(MANIFEST)
    write_gguf(folder / "given.gguf")
    assert taken(lambda: preflight(PlanRequest(folder / "m.yaml", folder / "none.duckdb", offline=True)))
    prepare(folder / "given.gguf", folder / "out", "decoder")
    whole_file(folder)
    shutil.copytree(folder / "packed", folder / "stored")
    configured(folder)
    return folder


few = settings(max_examples=settings.default.max_examples // 4)
"""A quarter of what other properties try: each is a plan or a model."""


@few
@given(data=st.data())
def test_a_manifest(home: Path, data: st.DataObject) -> None:
    (home / "m.yaml").write_bytes(spliced(data, MANIFEST, WORDS).encode(errors="surrogatepass"))
    taken(lambda: preflight(PlanRequest(home / "m.yaml", home / "none.duckdb", offline=True)))


def configured(home: Path) -> None:
    """Build a model without storage from its config.json, as a plan does."""
    config = bounded.read_object(home / "model" / "config.json")
    family = family_of(config) or "decoder"
    model_size(ManifestModel(name="m", source="path:m", family=family), config, home / "none")
    parts(Checkpoint(home / "model"), family)
    meta_model(family, config)


@few
@given(data=st.data(), base=st.sampled_from([benign.LLAMA, benign.BERT]))
def test_a_configuration(home: Path, data: st.DataObject, base: dict[str, Any]) -> None:
    (home / "model" / "config.json").write_bytes(changed(data, base))
    taken(lambda: configured(home))
    (home / "model" / "config.json").write_text(json.dumps(benign.LLAMA))


def whole_file(home: Path) -> None:
    """Read every tensor, convert, pack and unpack."""
    for name in ("prepared", "packed", "unpacked"):
        shutil.rmtree(home / name, ignore_errors=True)
    prepare(home / "model", home / "prepared", "decoder", "bfloat16")
    pack(home / "prepared", home / "packed")
    unpack(home / "packed", home / "unpacked")


@few
@given(data=st.data(), form=st.sampled_from(["safetensors", "packed"]))
def test_a_header_of_weights(home: Path, data: st.DataObject, form: str) -> None:
    path = home / ("model/model.safetensors" if form == "safetensors" else "stored/model.safetensors.packed")
    kept = path.read_bytes()
    size = struct.unpack("<Q", kept[:8])[0]
    header = json.loads(kept[8 : 8 + size])
    about = header.get("__metadata__", {})
    if "tensors" in about and data.draw(st.booleans()):  # of a packed file: JSON within the JSON
        about["tensors"] = changed(data, json.loads(about["tensors"])).decode(errors="replace")
        text = json.dumps(header).encode()
    else:
        text = changed(data, header)
    path.write_bytes(benign.container(text, kept[8 + size :]))
    shutil.rmtree(home / "unpacked", ignore_errors=True)
    taken(lambda: whole_file(home) if form == "safetensors" else unpack(home / "stored", home / "unpacked"))
    path.write_bytes(kept)


@few
@given(data=st.data())
def test_a_gguf_file(home: Path, data: st.DataObject) -> None:
    whole = (home / "given.gguf").read_bytes()
    head = whole.index(b"blk.0.ffn_down.weight") + 60
    (home / "mutated.gguf").write_bytes(spliced(data, whole[:head], BYTES) + whole[head:])
    shutil.rmtree(home / "out", ignore_errors=True)
    taken(lambda: prepare(home / "mutated.gguf", home / "out", "decoder"))
