"""A command that starts others ends with all of them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsebench import children


def test_what_a_command_says_is_kept() -> None:
    said = "import os, sys; print(os.environ['WORD']); sys.exit('no')"
    done = children.run([sys.executable, "-c", said], 60, {"WORD": "yes"})
    assert (done.returncode, done.stdout, done.stderr) == (1, "yes\n", "no\n")


def test_a_timeout_ends_what_the_command_started(tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    inner = f"import time\nwhile True:\n    open({str(grown)!r}, 'a').write('.')\n    time.sleep(0.02)"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with pytest.raises(subprocess.TimeoutExpired):
        children.run([sys.executable, "-c", outer], 3)
    time.sleep(0.2)
    size = grown.stat().st_size
    assert size
    time.sleep(0.3)
    assert grown.stat().st_size == size
