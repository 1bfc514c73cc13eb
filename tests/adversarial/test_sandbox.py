"""Hostile inputs given to commands beside a secret, and the sandbox itself: whatever harm is done is found.

Each command is a process of seconds: a third of the cases are in the usual run, all in `make test-long`.
"""

import base64
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adversarial.cases import CASES
from tests.adversarial.sandbox import Sandbox
from tests.sampling import a_third

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
HARMLESS = (
    "names with escapes", "SQL: escapes", "SQL: '\\0'", "a figure: mathtext", "code of the model's own, type bert",
    "a chat template", "a tokenizer of", "pickles beside", "modules of", "a wheel with",
)  # fmt: skip
"""Cases that are taken without harm; all others are refused."""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "box/input/index"))
    return Sandbox(tmp_path / "box")


@pytest.mark.parametrize("name", a_third(CASES, slow="pickles beside the weights, engine"))
def test_a_hostile_input_reaches_nothing_outside(name: str, box: Sandbox) -> None:
    found = [problem for words in CASES[name](box) for problem in box.command(*words)]
    assert found == []
    assert not box.marker.exists()
    assert name.startswith(HARMLESS) or box.codes, "a harmful input was taken"


CRIMES: dict[str, Callable[[Sandbox], object]] = {
    "opened outside": lambda box: box.canary.open().close(),
    "asked the network": lambda box: __import__("socket").getaddrinfo("127.0.0.1", 9),
    "a traceback": lambda box: "Traceback (most recent call last)",
    "U+001B": lambda box: "\x1b[2J",
    "shows the secret": lambda box: base64.b64encode(b"x" + box.secret.encode()).decode(),
    "changed outside: outside/secret.txt": lambda box: os.utime(box.canary),
    "changed outside: outside/new": lambda box: (box.outside / "new").mkdir(),
    "changed outside: work/new": lambda box: (box.work / "new").touch(),
    "a new link: work/out/x": lambda box: (box.out / "x").symlink_to(box.canary),
    "the secret is in work/out/x": lambda box: (box.out / "x").write_text(box.secret),
}


@pytest.mark.parametrize("problem", CRIMES)
def test_every_harm_is_found(problem: str, box: Sandbox) -> None:
    def act() -> str:
        shown = CRIMES[problem](box)
        return shown if isinstance(shown, str) else ""

    assert box.problems(lambda: "a word") == []
    assert [found for found in box.problems(act) if problem in found]


def test_time_is_limited(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.adversarial.sandbox.COMMAND_SECONDS", 0.01)
    with pytest.raises(AssertionError, match="of CPU"):
        box.problems(lambda: str(sum(range(3_000_000))))
