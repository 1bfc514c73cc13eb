"""Where numbers are calculated: ``cpu``, ``cuda`` (every GPU that is visible) or ``cuda:N``. Nothing here imports torch.

torch calls AMD's GPUs cuda as well. What the driver lists is read from the driver's own tool, and
``CUDA_VISIBLE_DEVICES`` is interpreted as CUDA does. What torch sees is asked in a separate process, since a process
that has touched a GPU cannot fork.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sparsebench import children
from sparsebench.errors import UserError

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"
DEVICE_ORDER = "CUDA_DEVICE_ORDER"
# CUDA would count the fastest GPU first, the driver's tool does not.
os.environ.setdefault(DEVICE_ORDER, "PCI_BUS_ID")
PATTERN = r"auto|cpu|cuda(:\d{1,3})?"
"""The names that a device may have."""
_NVIDIA = ["nvidia-smi", "--query-gpu=uuid,name,memory.free", "--format=csv,noheader,nounits"]
_NVIDIA_LINE = re.compile(r"([^,]*?)\s*,\s*(.*?)\s*,\s*([^,]*)")
"""What that query prints of a GPU: its uuid, its name, which may hold commas, and its free MiB."""
_AMD = ["rocm-smi", "--showproductname", "--csv"]
_AMD_LINE = re.compile(r"card\d+,\s*(.*)")
"""What that prints of a GPU, besides a line of column names, and warnings such as that a GPU is in a low-power state."""
_TIMEOUT_SECONDS = 120
"""How long torch and the driver's tool may take: where no program keeps the driver awake, the tool first starts every GPU,
which takes some seconds each."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver lists it, under its ``number``; ``uuid`` is empty and ``free`` (bytes) None if not listed."""

    number: int
    name: str
    uuid: str = ""
    free: int | None = None

    @property
    def handle(self) -> str:
        """The value of CUDA_VISIBLE_DEVICES that makes only this GPU visible."""
        return self.uuid or str(self.number)


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that a program started now can see, in CUDA's order (``DEVICE_ORDER``)."""
    selection = os.environ.get(VISIBLE_DEVICES)
    if selection is not None and not selection.strip():
        return ()
    listed = _gpus_listed()
    if selection is None:
        return listed
    gpus: list[Gpu] = []
    for word in (gpu.strip() for gpu in selection.split(",")):
        # A MIG slice is not listed among whole GPUs. Like CUDA, take nothing behind a word that names no GPU.
        gpu = Gpu(len(gpus), "MIG", word) if word.startswith("MIG-") else _selected(word, listed)
        if gpu is None:
            break
        gpus.append(gpu)
    return tuple(gpus)


def _selected(selector: str, listed: tuple[Gpu, ...]) -> Gpu | None:
    if selector.isdecimal():
        return next((gpu for gpu in listed if gpu.number == int(selector)), None)
    return next((gpu for gpu in listed if selector.startswith("GPU-") and gpu.uuid.startswith(selector)), None)


def _gpus_listed() -> tuple[Gpu, ...]:
    """Return all GPUs that NVIDIA's tool lists, else those that AMD's lists."""
    gpus: list[Gpu] = []
    for line in _driver_answer(_NVIDIA).splitlines():
        if match := _NVIDIA_LINE.fullmatch(line.strip()):
            uuid, name, mebibytes = match.groups()
            gpus.append(Gpu(len(gpus), name, uuid, int(mebibytes) * 2**20 if mebibytes.isdigit() else None))
    if gpus:
        return tuple(gpus)
    cards = [_AMD_LINE.fullmatch(line.strip()) for line in _driver_answer(_AMD).splitlines()]
    return tuple(Gpu(number, card[1]) for number, card in enumerate(filter(None, cards)))


def _driver_answer(command: list[str]) -> str:
    """Return what a tool prints; an empty text where it is not installed, fails or does not end."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if finished.returncode else finished.stdout


@cache
def gpu_names() -> tuple[str, ...]:
    """Return the names of the visible GPUs; asked once, since every record contains them."""
    return tuple(gpu.name for gpu in visible_gpus())


def is_gpu(device: str) -> bool:
    """Return whether a resolved device is a GPU, or several."""
    return device.startswith("cuda")


def hardware_name(device: str) -> str:
    """Return the name of a resolved device: ``cpu``, or the names of its GPUs, once each."""
    if not is_gpu(device):
        return "cpu"
    all_names = gpu_names()
    return ", ".join(dict.fromkeys(all_names[_slice_of(device)] if ":" in device else all_names)) or device


def _slice_of(device: str) -> slice:
    number = int(device.partition(":")[2])
    return slice(number, number + 1)


@cache
def cuda_version() -> str:
    """Return the version of CUDA (or ROCm, as ``rocm 6.4``) that the installed torch was built with; empty for a CPU's.

    It is read from torch's version.py: wheels of the public index do not say it in their version.
    """
    torch = find_spec("torch")
    if torch is None or not torch.origin:
        return ""
    try:
        text = (Path(torch.origin).parent / "version.py").read_text()
    except OSError:
        return ""
    cuda, hip = (re.search(rf"^{key}\b[^=\n]*= *['\"]([^'\"]+)", text, re.MULTILINE) for key in ("cuda", "hip"))
    if cuda:
        return cuda[1]
    return f"rocm {hip[1]}" if hip else ""


def resolve(device: str = "auto") -> str:
    """Return ``cpu``, ``cuda`` or ``cuda:N``; ``auto`` is the GPUs where the driver lists any, else the CPU.

    Raises UserError for a device that is not here, where the driver lists GPUs that torch does not see, and where a
    driver is here whose tool lists none. Else all would run on the CPU, for days, though nobody asked for that.
    """
    if not re.fullmatch(PATTERN, device):
        raise UserError(f"device: there is no {device!r}", "auto, cpu, cuda, or cuda:N for the GPU of that number")
    if device == "cpu":
        return "cpu"
    gpus = visible_gpus()
    if not gpus:
        if device == "auto" and not _driver_is_silent():
            return "cpu"
        hidden = f"{VISIBLE_DEVICES} hides them" if VISIBLE_DEVICES in os.environ else "nvidia-smi lists none"
        way_out = f"see what nvidia-smi and {VISIBLE_DEVICES} say; or say `device: cpu`"
        raise UserError(f"device: {device}: there is no GPU that may be used ({hidden})", way_out)
    number = int(device.partition(":")[2] or 0)
    if number >= len(gpus):
        raise UserError(
            f"device: {device}: {len(gpus)} GPU{'s are' if len(gpus) > 1 else ' is'} visible, counted from 0",
            f"cuda:0{f' to cuda:{len(gpus) - 1}' if len(gpus) > 1 else ''}, or cuda for all",
        )
    if problem := visibility_problem(len(gpus)):
        raise UserError(
            f"device: {device}: the driver lists {len(gpus)} GPU{'s' * (len(gpus) > 1)} ({gpus[0].name}), and {problem}",
            "install a torch that was built for this driver (https://pytorch.org/get-started), or say `device: cpu`",
        )
    return "cuda" if device == "auto" else device


def _driver_is_silent() -> bool:
    """Whether NVIDIA's driver is here, and CUDA_VISIBLE_DEVICES does not hide its GPUs."""
    selection = os.environ.get(VISIBLE_DEVICES, "0").strip()
    return Path(children.GPU_DEVICE_FILES[0]).exists() and bool(re.match(r"\d|GPU-|MIG-", selection))


def visibility_problem(listed_count: int) -> str | None:
    """Say why torch does not see the ``listed_count`` GPUs that the driver lists; None where it sees them."""
    if find_spec("torch") is None:
        return "torch is not installed"
    if not cuda_version():
        return "the installed torch was built for a CPU only"
    answered, seen_count, last_line = _seen_by_torch(os.environ.get(VISIBLE_DEVICES))
    if not answered:
        return f"torch could not be asked: {last_line}"
    if seen_count < listed_count:
        return f"torch sees {seen_count or 'none'} (torch built for {cuda_version()}{f'; {last_line}' if last_line else ''})"
    return None


@cache
def _seen_by_torch(visible_devices: str | None) -> tuple[bool, int, str]:
    """Return whether a separate process could ask torch, how many GPUs torch sees, and its last line on stderr."""
    code = "import torch; print('seen', torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False,
            env={**os.environ, **children.import_variables()},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, 0, str(error)
    last_line = (probe.stderr.strip().splitlines() or [""])[-1]
    match = re.search(r"^seen (\d+)$", probe.stdout, re.MULTILINE)
    return bool(match), int(match[1]) if match else 0, last_line


def selected_gpus(device: str) -> tuple[Gpu, ...]:
    """Return the GPUs that a resolved device means: all that are visible, one of them, or none."""
    if not is_gpu(device):
        return ()
    return visible_gpus()[_slice_of(device)] if ":" in device else visible_gpus()


def free_memory(device: str, ranks: int | None = None) -> int | None:
    """Return the free bytes of the fullest GPU that a resolved device means, or of those that the first ``ranks`` use.

    None where there is no GPU, or its tool does not say.
    """
    return min((gpu.free for gpu in selected_gpus(device)[:ranks] if gpu.free is not None), default=None)


def visible_to_child(device: str) -> dict[str, str]:
    """Return environment variables that leave a child only a resolved device; its name there is that of ``single_device``."""
    if not is_gpu(device):
        return {VISIBLE_DEVICES: ""}
    return {VISIBLE_DEVICES: selected_gpus(device)[0].handle} if ":" in device else {}


def single_device(device: str) -> str:
    """Return the name of a device in a process where it is the only visible one."""
    return device.partition(":")[0]
