"""Where a run keeps its files: model and variant folders in the cache, records and logs beside the ledger."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import UserError
from sparsebench.models import building
from sparsebench.plan.cells import Variant


@dataclass(frozen=True)
class Workspace:
    """``work`` holds what can be made again; ``ledger`` with ``records`` and ``logs`` beside it what cannot."""

    work: Path
    ledger: Path
    records: Path
    logs: Path

    @classmethod
    def of(cls, ledger: Path, work: Path) -> Workspace:
        """The layout for a ledger file and a work folder."""
        home = ledger.parent
        return cls(work, ledger, home / "records", home / "logs")

    def folder(self, variant: Variant) -> Path:
        """The variant as a Hugging Face folder."""
        return self.work / ("models" if variant.is_dense else "variants") / variant.id

    def packed(self, variant: Variant) -> Path:
        """The variant in the packed format."""
        return self.work / "packed" / variant.id

    def present(self, variant: Variant) -> bool:
        """Whether the variant's folder is there; folders appear whole or not at all."""
        return (self.folder(variant) / "config.json").is_file()

    def drop(self, variant: Variant) -> None:
        """Remove a sparsified variant's dense folder; it can be unpacked or made again."""
        if not variant.is_dense:
            shutil.rmtree(self.folder(variant), ignore_errors=True)

    def scratch(self) -> Path:
        """A new folder of this process's own for temporary files; what dead processes left there is removed."""
        return building.beside(self.work / "scratch" / "job")


@contextmanager
def exclusive(ledger: Path) -> Iterator[None]:
    """Hold the ledger's run lock. Raises UserError naming the process that holds it. Freed by the system if we die."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    path = ledger.with_name(f".{ledger.name}.lock")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"process {holder} is running on {ledger}", "wait for it, or name another file with --ledger"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
