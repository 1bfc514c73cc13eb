"""The command line in the process of the test: a process of its own would import everything anew, a second or two each time."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from sparsebench.cli.app import main


def call(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command as ``python -m sparsebench`` does."""
    command, out, said = ["sparsebench", *map(str, words)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(said):
        patch.setattr(sys, "argv", command)
        if cwd:
            patch.chdir(cwd)
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), said.getvalue())


def succeed(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = call(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done
