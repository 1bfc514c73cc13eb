"""What is mutated, and what reads it: each is made once, in a folder of its process, and takes one input after another."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import Any

from tests.adversarial import benign, mutate
from tests.models.test_prepare import write_gguf

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MANIFESTS = (
    "quickstart.yaml",
    "experiments.yaml",
    *sorted(f"examples/{p.name}" for p in (REPOSITORY / "examples").glob("*.yaml")),
)


class Target(ABC):
    """A kind of input."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    @abstractmethod
    def mutated(self, random: Random) -> bytes:
        """One input."""

    @abstractmethod
    def harmless(self) -> bytes:
        """One that succeeds: reading it first imports what reading takes."""

    @abstractmethod
    def read(self, given: bytes) -> None:
        """Do with it what the program does; it may raise."""


class Manifests(Target):
    """A manifest as far as its plan: loaded, checked, expanded, estimated."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.texts = [(REPOSITORY / name).read_text() for name in MANIFESTS]
        benign.model(folder / "model")
        own = (
            "version: 1\nseed: 0\nmodels:\n  - {name: tiny, source: path:model, family: decoder}\nvariants:\n"
            '  - {prune: magnitude, sparsity: [0.5, 0.9]}\n  - prune: wanda\n    pattern: ["2:4", 4x4]\n    sparsity: 0.5\n'
            "  - [{prune: sparsegpt, sparsity: 0.5}, {quantize: int8}]\nstorage: {formats: [dense, packed], keep: packed}\n"
            "runtime:\n  engines: [hf, sparse]\n  ranks: [1, 2]\n  workloads:\n    - {batch: 1, prompt: 8, generate: 4}\n"
            "benchmarks:\n  decoder:\n    - {task: piqa, limit: 10}\nstructure: {absolute: [1e-3], relative: [0.1]}\n"
        )
        self.texts += [own] * len(self.texts)

    def mutated(self, random: Random) -> bytes:
        return mutate.text(random.choice(self.texts), random)

    def harmless(self) -> bytes:
        return self.texts[-1].encode()

    def read(self, given: bytes) -> None:
        from sparsebench.plan.checks import load
        from sparsebench.plan.preflight import PlanRequest, prepare

        path = self.folder / "given.yaml"
        path.write_bytes(given)
        if b"path:model" in given:
            prepare(PlanRequest(path, self.folder / "none.duckdb", offline=True))
        else:
            load(path)


class Headers(Target):
    """A model's weight file: opened, every tensor read, packed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = benign.model(folder / "model")
        self.whole = (self.model / "model.safetensors").read_bytes()

    def mutated(self, random: Random) -> bytes:
        return mutate.container(self.whole, random)

    def harmless(self) -> bytes:
        return self.whole

    def read(self, given: bytes) -> None:
        from sparsebench.models.files.checkpoint import Checkpoint
        from sparsebench.models.prepare import prepare
        from sparsebench.storage import pack, unpack
        from sparsebench.structure import assess

        (self.model / "model.safetensors").write_bytes(given)
        for name in ("prepared", "packed", "unpacked"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for _ in Checkpoint(self.model).items():
            pass
        prepare(self.model, self.folder / "prepared", "decoder", "bfloat16")
        assess(self.folder / "prepared", "decoder", (1e-3,), (0.1,))
        pack(self.folder / "prepared", self.folder / "packed")
        unpack(self.folder / "packed", self.folder / "unpacked")


class Configurations(Target):
    """A model's config.json: prepared, its plan's size, built without storage."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = benign.model(folder / "model")

    def mutated(self, random: Random) -> bytes:
        return mutate.record(random.choice((benign.LLAMA, benign.BERT)), random)

    def harmless(self) -> bytes:
        return json.dumps(benign.LLAMA).encode()

    def read(self, given: bytes) -> None:
        from sparsebench import bounded
        from sparsebench.manifest.schema import ManifestModel
        from sparsebench.models.files.checkpoint import Checkpoint
        from sparsebench.models.files.families import family_of
        from sparsebench.models.modules.build import meta_model
        from sparsebench.models.shape.topology import parts
        from sparsebench.plan.sizes import model_size

        path = self.model / "config.json"
        path.write_bytes(given)
        config = bounded.read_object(path)
        family = family_of(config) or "decoder"
        model_size(ManifestModel(name="m", source="path:m", family=family), config, self.folder / "none")
        parts(Checkpoint(self.model), family)
        meta_model(family, config)


class Packed(Target):
    """A packed weight file: read whole, read as the sparse engine reads it, unpacked."""

    form = "packed"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from sparsebench.storage import formats

        model = benign.model(folder / "model")
        data = bytearray((model / "model.safetensors").read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        for place in range(start, len(data), 4):  # zeros, so that every encoding has its turn
            if place % (28 if place < (start + len(data)) // 2 else 8):
                data[place : place + 4] = bytes(4)
        (model / "model.safetensors").write_bytes(data)
        write = formats()[self.form].write
        assert write
        write(model, folder / "stored")
        self.path = folder / "stored" / f"model.safetensors.{self.form}"
        self.whole = self.path.read_bytes()

    def mutated(self, random: Random) -> bytes:
        return mutate.container(self.whole, random)

    def harmless(self) -> bytes:
        return self.whole

    def read(self, given: bytes) -> None:
        from sparsebench.storage import unpack

        self.path.write_bytes(given)
        if self.form == "packed":
            self._as_the_engine()
        shutil.rmtree(self.folder / "unpacked", ignore_errors=True)
        unpack(self.folder / "stored", self.folder / "unpacked")

    def _as_the_engine(self) -> None:
        import torch

        from sparsebench.errors import SparsebenchError
        from sparsebench.native import Missing
        from sparsebench.runtime.kernels import Choices, KernelLinear, kernels
        from sparsebench.runtime.kernels.matrix import bitmask
        from sparsebench.storage.packed import PackedCheckpoint

        weights, found = PackedCheckpoint(self.folder / "stored"), kernels()
        for name, info in weights.tensors.items():
            try:
                parts, kind = weights.bitmask(name), {"BF16": "bfloat16", "F32": "float32"}.get(info.dtype)
                if parts is None or kind is None or len(info.shape) != 2 or isinstance(found, Missing):
                    continue
                layer = KernelLinear(found, bitmask(kind, *info.shape, *parts), Choices())
                layer(torch.ones(1, info.shape[1]))
            except SparsebenchError:
                continue


class Archives(Packed):
    """An archived weight file."""

    form = "archive"


class Ggufs(Target):
    """A GGUF file, prepared as the command line does it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "given.gguf"
        write_gguf(self.path)
        self.whole = self.path.read_bytes()

    def mutated(self, random: Random) -> bytes:
        head = self.whole.index(b"blk.0.ffn_down.weight") + 60 if random.random() < 0.9 else len(self.whole)
        return mutate.data(self.whole[:head], random) + self.whole[head:]

    def harmless(self) -> bytes:
        return self.whole

    def read(self, given: bytes) -> None:
        from sparsebench.models.prepare import prepare

        self.path.write_bytes(given)
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        prepare(self.path, self.folder / "out", "decoder")


class Records(Target):
    """A record, brought into a ledger; a plan among others, as ``status`` reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.records = benign.records(REPOSITORY)
        (folder / "records").mkdir()
        self.ledger = folder / "ledger.duckdb"
        self.number = 0

    def mutated(self, random: Random) -> bytes:
        return mutate.record(random.choice(self.records), random)

    def harmless(self) -> bytes:
        return json.dumps(self.records[0]).encode()

    def read(self, given: bytes) -> None:
        from sparsebench.ledger.store import Ledger
        from sparsebench.records import read, statuses

        folder = self.folder / "records"
        (folder / "plan-x.json").write_bytes(given)
        wrong: list[Any] = []
        Ledger(self.ledger).rebuild([folder], wrong.append)
        statuses(folder)
        (folder / "x.done.json").write_bytes(given)
        list(read([folder / "x.done.json"]))
        (folder / "x.done.json").unlink()
        if wrong:
            raise wrong[0]


class Figures(Target):
    """A figure's file, drawn from a ledger."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from sparsebench.figures.spec import SHIPPED
        from sparsebench.ledger.store import Ledger

        (folder / "own").mkdir()
        self.ledger = folder / "ledger.duckdb"
        Ledger(self.ledger).ingest(benign.records(REPOSITORY))
        head = "-- title: t\n-- kind: {}\n-- x: x\n-- y: y\n-- series: s\n"
        rows = "select range as x, range * 2 as y, 'a' || range % 2 as s, range + 1 as value from range(4)"
        self.texts = [head.format(kind) + rows for kind in ("line", "curve", "bars", "scatter", "forest")]
        self.texts.append(head.format("heatmap") + "-- value: value\n" + rows)
        self.texts += [path.read_text() for path in sorted(SHIPPED.glob("*.sql"))[:4]]

    def mutated(self, random: Random) -> bytes:
        return mutate.text(random.choice(self.texts), random)

    def harmless(self) -> bytes:
        return self.texts[0].encode()

    def read(self, given: bytes) -> None:
        from sparsebench.figures.draw import render_file

        path = self.folder / "own" / "given.sql"
        path.write_bytes(given)
        render_file(path, self.ledger, self.folder / "out", ("svg",), 6.5)


TARGETS: dict[str, type[Target]] = {
    "manifest": Manifests, "header": Headers, "config": Configurations, "packed": Packed, "archive": Archives, "gguf": Ggufs,
    "record": Records, "figure": Figures,
}  # fmt: skip
