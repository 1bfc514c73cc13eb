"""A folder with a secret beside what a stranger hands over: commands run in it, and everything they may not do is found.

outside/    what no command may open, change or add to
input/      what the stranger hands over
work/       the current folder; only ``work/out`` may be written
"""

import base64
import io
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adversarial import benign
from tests.adversarial.watch import audited, cheap, opened
from tests.command import call

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal may take for more than text."""
COMMAND_SECONDS, COMMAND_BYTES = 20.0, 4_500_000_000
"""Of CPU and memory, at most, for a command: a query may take 4 GB, and the first command imports what it needs."""


class Sandbox:
    """The sandbox of one test."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.outside, self.input, self.out = (self.root / name for name in ("outside", "input", "work/out"))
        for folder in (self.outside, self.input, self.out):
            folder.mkdir(parents=True)
        self.secret = f"SECRET{secrets.token_hex(16)}"
        self.canary, self.marker, self.work = self.outside / "secret.txt", self.root / "marker", self.root / "work"
        self.canary.write_text(f'{{"text": "{self.secret}"}}\n')
        self.codes = 0
        """The exit codes of all commands, added up."""

    def model(self, **changes: Any) -> Path:
        """A harmless model, with these keys changed in its config.json."""
        return benign.model(self.input / "model", {**benign.LLAMA, **changes})

    def write(self, name: str, text: str) -> Path:
        """A file of the stranger's that may name the secret, the folder outside and the marker."""
        path = self.input / name
        path.parent.mkdir(parents=True, exist_ok=True)
        named = {"SECRET": self.canary, "MARKER": self.marker, "OUTSIDE": self.outside}
        for word, real in named.items():
            text = text.replace(word, str(real))
        path.write_bytes(text.encode(errors="surrogateescape"))
        return path

    def command(self, *words: object) -> list[str]:
        """Run a command, with ``yes`` to whatever it asks; what it did wrong."""

        def run() -> str:
            done = call(*words, cwd=self.work)
            self.codes += done.returncode
            return done.stdout + done.stderr

        return self.problems(run)

    def problems(self, act: Callable[[], str]) -> list[str]:
        """Everything that something did and may not do; it returns what it shows."""
        before = self._files()
        with pytest.MonkeyPatch.context() as patch, opened(self.outside) as seen, audited() as log:
            patch.setattr("sys.stdin", io.StringIO("yes\n" * 100))
            with cheap(COMMAND_SECONDS, COMMAND_BYTES):
                shown = act()
        after = self._files()
        found = [f"opened outside: {name}" for name in seen]
        found += [f"asked the network: {event}" for event in log if event.startswith("socket.")]
        found += ["a traceback"] if "Traceback (most recent call last)" in shown else []
        found += [f"a control character: U+{ord(sign):04X}" for sign in CONTROL.findall(shown)[:1]]
        found += ["shows the secret"] if self._holds_secret(shown.encode()) else []
        for name in before.keys() | after.keys():
            path = self.root / name
            if before.get(name) != after.get(name) and self.out not in path.parents:
                found.append(f"changed outside: {name}")
            elif name in after and name not in before and path.is_symlink():
                found.append(f"a new link: {name}")
            elif name in after and path.is_file() and not path.is_symlink() and self.outside not in path.parents:
                found += [f"the secret is in {name}"] if self._holds_secret(path.read_bytes()) else []
        return found

    def _files(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = Path(folder, name)
                status = path.lstat()
                link = os.readlink(path) if path.is_symlink() else ""
                stamp = () if path.is_dir() else (status.st_size, status.st_mtime_ns)
                found[str(path.relative_to(self.root))] = (status.st_mode, status.st_ino, link, *stamp)
        return found

    def _holds_secret(self, content: bytes) -> bool:
        """Whether bytes hold the secret in a usual coding."""
        secret = self.secret.encode()
        coded = [base64.b64encode(b"\0" * shift + secret)[8 if shift else 0 : -4] for shift in range(3)]
        return any(form in content for form in (secret, self.secret.encode("utf-16-le"), secret.hex().encode(), *coded))
