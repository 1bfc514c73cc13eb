"""GPUs that are not there: a tool on PATH that lists them as NVIDIA's does."""

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from sparsebench import devices, environment

H100 = "NVIDIA H100 80GB HBM3"
# Named here: a test may have replaced one by a plain function when its driver is forgotten.
_CACHED = (
    devices.gpu_names,
    devices.cuda_version,
    devices._seen_by_torch,
    environment.hardware_class,
    environment.place,
)


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
        for cached in _CACHED:
            cached.cache_clear()


def install_torch(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    hip: str | None = None,
    seen: int = 0,
    words: str = "",
) -> None:
    """A torch built for a version of CUDA, ROCm or neither, which sees so many GPUs and prints words to stderr."""
    package = folder / "torch"
    package.mkdir(exist_ok=True)
    (package / "version.py").write_text(f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = {hip!r}\n")
    calls = f"is_available = staticmethod(lambda: {seen} > 0)\n    device_count = staticmethod(lambda: {seen})"
    (package / "__init__.py").write_text(f"import sys\nprint({words!r}, file=sys.stderr)\nclass cuda:\n    {calls}\n")
    spec = spec_from_file_location("torch", package / "__init__.py")
    assert spec
    monkeypatch.setitem(sys.modules, "torch", module_from_spec(spec))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    Driver.forget()
