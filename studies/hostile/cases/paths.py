"""Models that point out of their folder: by names in an index, by links, by names of files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from studies.hostile import benign
from studies.hostile.harmless import FEW, HALF
from studies.hostile.registry import case
from studies.hostile.sandbox import UP, Box, Step, unplant

_NORM = "model.norm.weight"
_NAMES = {
    "../": f"{UP}/outside/weights.safetensors",
    "./ and ../": f"./x/../{UP}/outside/weights.safetensors",
    "absolute": "OUTSIDE/weights.safetensors",
    "doubled slashes": f"{UP}//outside///weights.safetensors",
    "NUL": "model-00001-of-00001.safetensors\0.txt",
    "backslashes": "..\\..\\..\\..\\outside\\weights.safetensors",
    ".": ".",
    "..": "..",
    "empty": "",
    "very long": "m" * 5000 + ".safetensors",
    "full-width dots": "．．/．．/．．/．．/outside/weights.safetensors",
    "a right-to-left mark": "model‮srosnetefas.safetensors",
    "a newline": "model\n.safetensors",
    "an escape sequence": "model\x1b[2J.safetensors",
    "a lone surrogate": "model\ud800.safetensors",
    "a config": "config.json",
    "a device": "/dev/zero",
    "standard input": "/dev/stdin",
    "a number": 7,
    "a list": ["model.safetensors"],
    "null": None,
}


@case("weight_map", _NAMES)
def weight_map(box: Box, name: object) -> Iterator[Step]:
    if isinstance(name, str):
        name = name.replace("OUTSIDE", str(box.outside))
    model = benign.sharded(box.input / "model", {_NORM: name})  # type: ignore[dict-item]
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case("weight_map of pickles", {"../": f"{UP}/outside/weights.bin", "absolute": "OUTSIDE/weights.bin"})
def pickle_map(box: Box, name: str) -> Iterator[Step]:
    import zipfile

    with zipfile.ZipFile(box.outside / "weights.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/version", "3\n")
    model = benign.model(box.input / "model", weights=False)
    named = {"weight_map": {_NORM: name.replace("OUTSIDE", str(box.outside))}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(named))
    yield box.do("apply", model, HALF, "--out", box.out / "pruned", like="calibrate")


@case("index of a packed model, ../")
def packed_index(box: Box) -> Iterator[Step]:
    model = benign.sharded(box.input / "plain", {})
    folder = box.input / "model"
    folder.mkdir()
    # `pack` writes as many ../ as the index has: what it makes is made by hand here.
    (folder / "config.json").write_text((model / "config.json").read_text())
    named = {"weight_map": {_NORM: f"{UP}/outside/weights.safetensors"}}
    (folder / "model.safetensors.index.json.packed").write_text(json.dumps(named))
    (folder / "model.safetensors.packed").write_bytes((model / "model-00001-of-00001.safetensors").read_bytes())
    (box.outside / "weights.safetensors.packed").write_bytes((box.outside / "weights.safetensors").read_bytes())
    yield box.do("unpack", folder, "--out", box.out / "unpacked")
    yield box.do("measure", folder, "--engine", "sparse", *FEW, like="hf")


_LINKED = {
    "config.json": "secret.txt",
    "model.safetensors": "weights.safetensors",
    "generation_config.json": "secret.txt",
    "tokenizer.json": "secret.txt",
    "tokenizer_config.json": "secret.txt",
    "README.md": "secret.txt",
    "notes.txt": "secret.txt",
    "chat_template.jinja": "secret.txt",
    ".hidden": "secret.txt",
}


def _link(box: Box, name: str, target: Path) -> Path:
    model = box.model()
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(target)
    return model


@case("a link out of the model", dict(zip(_LINKED, _LINKED, strict=True)))
def link_out(box: Box, name: str) -> Iterator[Step]:
    model = _link(box, name, box.outside / _LINKED[name])
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")


@case("a relative link out of the model")
def relative_link(box: Box) -> Iterator[Step]:
    model = _link(box, "notes.txt", Path(UP) / "outside/secret.txt")
    yield box.do("pack", model, "--format", "archive", "--out", box.out / "archive", like="archive")
    yield box.do("inspect", model)


@case("a chain of links out of the model")
def link_chain(box: Box) -> Iterator[Step]:
    model = _link(box, "notes.txt", Path("first"))
    (model / "first").symlink_to("second")
    (model / "second").symlink_to(box.canary)
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("inspect", model)


@case(
    "a link to itself", {"config.json": "config.json", "model.safetensors": "model.safetensors", "a note": "notes.txt"}
)
def link_loop(box: Box, name: str) -> Iterator[Step]:
    model = _link(box, name, Path(name))
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case("a folder that links out of the model", {"anywhere": "extra", "of a pooling module": "1_Pooling"})
def folder_link(box: Box, name: str) -> Iterator[Step]:
    model = _link(box, name, box.outside)
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")


@case("a folder that links to its own parent")
def folder_loop(box: Box) -> Iterator[Step]:
    model = _link(box, "extra", Path("."))
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case("a link out of a folder inside the model")
def inner_link(box: Box) -> Iterator[Step]:
    model = box.model()
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").symlink_to(box.canary)
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case("a link out of a packed model", {"a companion": "notes.txt", "its configuration": "config.json"})
def packed_link(box: Box, name: str) -> Iterator[Step]:
    model = box.model()
    packed = box.out / "packed"
    yield box.do("pack", model, "--out", packed)
    (packed / name).unlink(missing_ok=True)
    (packed / name).symlink_to(box.canary)
    yield box.do("unpack", packed, "--out", box.out / "unpacked")
    unplant(packed / name)


@case("links as the hub's cache has them")
def hub_links(box: Box) -> Iterator[Step]:
    blobs = box.model().rename(box.input / "blobs")
    snapshot = box.input / "snapshots/0123/model"
    snapshot.mkdir(parents=True)
    for blob in sorted(blobs.iterdir()):
        (snapshot / blob.name).symlink_to(Path("../../../blobs") / blob.name)
    yield box.do("inspect", snapshot)
    yield box.do("pack", snapshot, "--out", box.out / "packed")
    yield box.do("apply", snapshot, HALF, "--out", box.out / "pruned")


@case("a hard link to a file to keep, in the model")
def hard_link(box: Box) -> Iterator[Step]:
    # Whoever could make a hard link could read the file: only that it stays as it is can be asked.
    box.may_open = True
    model = box.model()
    os.link(box.kept, model / "notes.txt")
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")


@case(
    "a FIFO in the model", {"as config.json": "config.json", "as weights": "model.safetensors", "as a note": "fifo.txt"}
)
def fifo(box: Box, name: str) -> Iterator[Step]:
    model = box.model()
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case(
    "a model in the current folder",
    {"modules that shadow": "torch numpy json duckdb yaml safetensors pydantic sparsebench"},
)
def shadows(box: Box, names: str) -> Iterator[Step]:
    model = box.model()
    box.work = model
    for name in (*names.split(), "sitecustomize", "usercustomize", "transformers", "deepspeed"):
        (model / f"{name}.py").write_text(f"open({str(box.marker)!r}, 'w')\n")
    yield box.do("inspect", ".")
    yield box.do("apply", ".", HALF, "--out", box.out / "pruned")
    yield box.do("measure", ".", "--engine", "hf", *FEW, like="hf")


@case("hostile names of files", {
    "a newline": "a\nb.txt", "an escape": "a\x1b[2Jb.txt", "a dash": "--out", "not UTF-8": b"a\xff.txt", "255 bytes": "n" * 255,
})  # fmt: skip
def file_names(box: Box, name: str | bytes) -> Iterator[Step]:
    model = box.model()
    Path(os.fsdecode(os.fsencode(model) + b"/" + os.fsencode(name))).write_text("x")
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")


@case("folders nested 450 deep")
def deep_folders(box: Box) -> Iterator[Step]:
    model = box.model()
    (model / "/".join("d" * 450)).mkdir(parents=True)
    yield box.do("inspect", model)
    yield box.do("pack", model, "--out", box.out / "packed")
