"""Checksums of a folder that can be made again, to check before each use that it has not changed.

They are XXH3, which protects against accidents, not malice. xxhash is installed with datasets anyway and takes a tenth
of the time of zlib's CRC-32. The checksums are beside the folder, in ``FOLDER.sums.json``, so that they do not add to
the folder's size. One more, of the weights alone, is noted in the folder: records name by it what was measured.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import xxhash

from sparsebench import environment
from sparsebench.models.files.safety import NOTES
from sparsebench.sources.cache import read_json, write_json

CHECKSUMS_SUFFIX = ".sums.json"
ALGORITHM = "xxh3_64"


def checksum_file(folder: Path) -> Path:
    """Return the path of the file with the checksums of ``folder``."""
    return folder.with_name(folder.name + CHECKSUMS_SUFFIX)


def weights_checksum(folder: Path) -> str:
    """Return the CRC-32 and the number of the weight files' bytes: machines that made the same weights agree on it."""
    total, size = 0, 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                total, size = zlib.crc32(piece, total), size + len(piece)
    return f"{total:08x}-{size}"


def noted_checksum(folder: Path) -> str:
    """Return the checksum of a folder's weights as ``seal`` noted it; empty where the folder is not sealed."""
    return str((read_json(folder / NOTES) or {}).get("content", ""))


def seal(folder: Path, device: str = "cpu") -> None:
    """Note in a folder, if not yet done, the checksum of its weights and what they were made on.

    The checksums of all its files are written beside it, for ``damage``.
    """
    notes = read_json(folder / NOTES) or {}
    if "content" not in notes:
        notes |= {"content": weights_checksum(folder), "made_on": environment.place(device)}
        forget(folder)  # a process that opens the folder now would take the note for damage
        write_json(folder / NOTES, notes, indent=1)
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write the size and checksum of every file of ``folder``."""
    write_json(
        checksum_file(folder),
        {ALGORITHM: {name: list(_size_and_checksum(folder / name)) for name in _file_names(folder)}},
    )


def damage(folder: Path) -> str | None:
    """Return what changed in a folder since its checksums were written, naming a file.

    None where nothing changed, or no checksums are written. A folder may be removed while it is read.
    """
    noted_files = (read_json(checksum_file(folder)) or {}).get(ALGORITHM)
    if not isinstance(noted_files, dict):
        return None
    try:
        return _difference(folder, noted_files)
    except FileNotFoundError as error:  # another job found the damage first
        return f"{error.filename} is gone"


def _difference(folder: Path, noted_files: dict[str, list[object]]) -> str | None:
    """Return what differs between a folder and what is noted of its files: the size in bytes and checksum of each."""
    if names := sorted(set(noted_files) ^ set(_file_names(folder))):
        return f"{folder / names[0]} {'is missing' if names[0] in noted_files else 'was added'}"
    for name in sorted(noted_files, key=lambda name: (folder / name).stat().st_size):
        noted_size, noted_sum = noted_files[name]
        if (size := (folder / name).stat().st_size) != noted_size:
            return f"{folder / name} has {size:,} bytes, not {noted_size:,}"
        if _size_and_checksum(folder / name) != (noted_size, noted_sum):
            return f"the checksum of {folder / name} differs"
    return None


def forget(folder: Path) -> None:
    """Remove the checksums of a folder that is removed."""
    checksum_file(folder).unlink(missing_ok=True)


def _file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _size_and_checksum(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its checksum."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
        return file.tell(), digest
