"""Values in the kernel's own files, such as /proc/cpuinfo."""

from __future__ import annotations

import re
from pathlib import Path


def value(file: str | Path, field: str) -> str:
    """Return the first value of a field in a kernel file, such as ``VmRSS:  1024 kB``; empty where there is none."""
    try:
        match = re.search(rf"^{field}[ \t]*[: \t][ \t]*(.*\S)", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""
