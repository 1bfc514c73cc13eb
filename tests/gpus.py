"""GPUs that are not there: a tool on PATH that lists them as NVIDIA's does."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from sparsebench import devices, environment

H100 = "NVIDIA H100 80GB HBM3"


class Driver:
    """An ``nvidia-smi`` that says what it is told to. torch sees no more for that."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tool, self.monkeypatch = folder / "nvidia-smi", monkeypatch
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.delenv(devices.VISIBLE_DEVICES, raising=False)

    def seen_by_torch(self) -> None:
        """Have torch taken to see all that it lists."""
        self.monkeypatch.setattr(devices, "visibility_problem", lambda count: None)

    def lists(self, gpus: Sequence[tuple[str, str, str]]) -> None:
        """(UUID, name, free MiB) of each."""
        lines = "".join(f"{', '.join(words)}\n" for words in gpus)
        self.tool.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
        self.tool.chmod(0o755)
        self.forget()

    @staticmethod
    def forget() -> None:
        """What was read of a driver that is not there any more."""
        for cached in (devices.gpu_names, environment.hardware_class, environment.place):
            cached.cache_clear()
