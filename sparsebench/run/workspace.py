"""Where a run keeps its files: model and variant folders in the cache, records and logs beside the ledger.

What is in the cache can be removed: all of it can be made or fetched again, and each item says what its loss costs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import psutil

from sparsebench import paths
from sparsebench.errors import UserError
from sparsebench.models.files import building
from sparsebench.paths import create, refuse_link, sweep, sweep_temporary
from sparsebench.plan.cells import Variant
from sparsebench.storage import sums

MODEL_FOLDERS = ("models", "variants", "packed")
"""The folders that hold models, each in a folder named by its variant's id."""
FOLDERS = (*MODEL_FOLDERS, "training", "scratch")
"""The folders of a work folder."""


def variant_folder(work: Path, variant_id: str) -> Path | None:
    """Return the folder of a measured variant in the work folder, whole or packed; None where it is gone."""
    folders = (work / name / variant_id for name in MODEL_FOLDERS)
    return next((folder for folder in folders if folder.is_dir()), None)


@dataclass(frozen=True)
class Workspace:
    """The paths of a run: ``work`` holds what can be made again; ``ledger``, ``records`` and ``logs`` what cannot."""

    work: Path
    ledger: Path
    records: Path
    logs: Path

    @classmethod
    def of(cls, ledger: Path, work: Path) -> Workspace:
        """Return the layout for a ledger file and a work folder. Raises UserError where records or logs are a link."""
        home = ledger.parent
        return cls(work, ledger, refuse_link(home / "records"), refuse_link(home / "logs"))

    def folder(self, variant: Variant) -> Path:
        """Return the path of the variant's Hugging Face folder."""
        return variant.folder(self.work)

    def packed(self, variant: Variant) -> Path:
        """Return the path of the variant's packed copy."""
        return self.work / "packed" / variant.id

    def training(self, variant: Variant) -> Path:
        """Return the folder that a training of the variant is resumed from."""
        return self.work / "training" / variant.id

    def content(self, variant: Variant) -> str:
        """Return the checksum of the variant's weights, taken when they were made; empty where there is none."""
        return sums.noted_checksum(self.folder(variant))

    def damage(self, variant: Variant) -> str | None:
        """Say what is wrong with the variant's folder; None if all of its files are as they were when it was made."""
        folder = self.folder(variant)
        return sums.damage(folder) if self.present(variant) else f"{folder} is gone"

    def discard(self, folder: Path) -> None:
        """Remove a folder that can be made again; a part of it never has its name."""
        with suppress(FileNotFoundError):
            shutil.rmtree(building.set_aside(folder), ignore_errors=True)
        sums.forget(folder)

    def present(self, variant: Variant) -> bool:
        """Return whether the variant's folder is there; folders appear whole or not at all."""
        with suppress(OSError):  # opening the parent makes NFS ask again for what another node has made
            os.close(os.open(self.folder(variant).parent, os.O_RDONLY))
        return building.is_whole(self.folder(variant))

    def has_packed(self, variant: Variant) -> bool:
        """Return whether there is a packed copy of the variant, which is unpacked in a moment."""
        return self.packed(variant).is_dir()

    def sweep(self) -> None:
        """Remove what dead processes have left half built, half removed or half written."""
        sweep_temporary()
        for folder in (self.records, *(self.work / name for name in FOLDERS)):
            sweep(folder)

    def scratch(self) -> Path:
        """Make a folder of this process's own for temporary files; remove what dead processes left there."""
        return building.new_partial(self.work / "scratch" / "job")


class Leases:
    """The variants that a run uses. Runs that share a work folder see each other's leases, whatever their ledgers.

    A lease is a lock on one byte of a file: the system releases it when its process dies. Use as a context manager.
    """

    def __init__(self, workspace: Workspace, variants: Iterable[Variant]) -> None:
        """Lease ``variants``; the run must do so before it checks which of their folders are there.

        Raises UserError where no file can be locked.
        """
        self.workspace = workspace
        workspace.work.mkdir(parents=True, exist_ok=True)
        self.file = create(workspace.work / "leases", "a+b")
        try:
            for variant in variants:
                fcntl.lockf(self.file, fcntl.LOCK_SH, 1, _lock_offset(variant.id))
        except OSError as error:
            self.file.close()
            raise UserError(
                f"{workspace.work}: no file can be locked there ({error})", "set work_dir to another disk"
            ) from error

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def release(self, variant: Variant) -> None:
        """Give a variant back, and remove its folder where no other run leases it: it can be unpacked or made again.

        The dense model's folder stays.
        """
        set_aside = None
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _lock_offset(variant.id))
            if not variant.is_dense:
                with suppress(OSError):  # it is gone, or may not be removed
                    set_aside = building.set_aside(self.workspace.folder(variant))
        except (BlockingIOError, PermissionError):
            pass  # another run's
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, _lock_offset(variant.id))
        if set_aside:
            shutil.rmtree(set_aside, ignore_errors=True)
            sums.forget(self.workspace.folder(variant))


def leased(work: Path, variant_id: str) -> bool:
    """Return whether another process uses the variant of this id just now.

    Not for a process that has ``Leases``: closing the file would end them.
    """
    try:
        with (work / "leases").open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _lock_offset(variant_id))
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # a lock that is held, or cannot be asked for; or no id
        return True
    return False


def _lock_offset(variant_id: str) -> int:
    return int(variant_id[:15], 16)


def running_process(ledger: Path) -> int | None:
    """Return the id of the process that runs on a ledger just now; None if there is none that this user may inspect.

    The lock is not tried: a run that begins at that moment would find it taken.
    """
    path = _lock_file(ledger)
    try:
        number = int(path.read_text())
        held = any(file.path == str(path.resolve()) for file in psutil.Process(number).open_files())
    except (OSError, ValueError, psutil.Error):
        return None
    return number if held else None


def _lock_file(ledger: Path) -> Path:
    """Return the lock file of the ledger's folder: its ledgers share their records and logs, and so their lock."""
    return ledger.with_name(".run.lock")


@contextmanager
def exclusive(ledger: Path) -> Iterator[None]:
    """Hold the lock of the ledger's folder, which the system frees if this process dies.

    Raises UserError, naming the process, where another holds it.
    """
    ledger.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_file(ledger)
    with create(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"process {holder} is running in {ledger.parent}",
                "wait for it, or name a ledger in another folder with --ledger",
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


WHY_REMOVABLE = {
    "models": "a prepared model: a run that needs it prepares it again",
    "variants": "a variant's folder: a run that needs it unpacks or makes it again",
    "packed": "a variant's packed copy: a new cell of it makes the variant again",
    "training": "a training that was interrupted: a run that needs it begins it anew",
}
"""The folders of a work folder whose content can go, and why."""
_DEAD = "left by a process that is no more"


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed, how many bytes on the disk that frees, and why it can go."""

    path: Path
    kind: str
    bytes: int
    why: str


def removable(work: Path) -> list[Removable]:
    """Return what can be removed from a work folder and the system's temporary files, the largest first.

    What a run uses just now is not among it.
    """
    half_built = chain.from_iterable(paths.leftovers(work / name) for name in FOLDERS)
    temporary = paths.leftovers(Path(tempfile.gettempdir()), paths.TEMPORARY)
    items = [Removable(path, "leftovers", _size(path), _DEAD) for path in (*temporary, *half_built)]
    for kind, reason in WHY_REMOVABLE.items():
        for path in (work / kind).glob("*"):
            is_whole = path.is_dir() and not path.is_symlink() and paths.PARTIAL not in path.name
            if is_whole and not leased(work, path.name):
                items.append(Removable(path, kind, _size(path), reason))
    return sorted(items, key=lambda item: (-item.bytes, str(item.path)))


def remove(item: Removable) -> bool:
    """Remove it, a variant's folder after a rename; return False where a run has begun to use it, or it is gone.

    Raises OSError for what cannot be removed.
    """
    if item.kind in WHY_REMOVABLE and leased(item.path.parent.parent, item.path.name):
        return False
    try:
        path = building.set_aside(item.path) if item.kind in WHY_REMOVABLE else item.path
        sums.forget(item.path)
        paths.remove(path)
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    """Return the bytes on the disk that are freed; a file with another hard link, such as a download's, frees none."""
    files = [str(path)]
    if path.is_dir() and not path.is_symlink():
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    total = 0
    for file in files:
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            stat = os.lstat(file)
            total += stat.st_blocks * 512 * (stat.st_nlink == 1)
    return total
