"""The command that hands over hostile inputs: whatever a program does wrong with one is found, and nothing else is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from studies.hostile import __main__ as command
from studies.hostile.cases import CASES
from studies.hostile.sandbox import Box, Done, Step, Verdict, judge, unplant

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

USUAL = {"act": Done(Step(("act",), "act"), 0, 0.1, 30.0, "", True)}
"""What a harmless dummy costs."""


def run(folder: Path, code: str, *, seconds: float = 1.0, **settings: bool) -> Verdict:
    """A dummy of the program that runs ``code``, in which OUTSIDE, MARKER, OUT and HOME are paths."""
    box = Box(folder / "box", baselines=USUAL, **settings)
    places = {"OUTSIDE": box.outside, "MARKER": box.marker, "OUT": box.out, "HOME": box.root / "home"}
    given = "".join(f"{name} = {str(path)!r}\n" for name, path in places.items())
    box.program = (sys.executable, "-I", "-S", "-c", f"{given}{code}")

    def steps() -> Iterator[Step]:
        yield box.do("act", seconds=seconds)
        unplant(box.out / "planted")

    return judge(box, steps())


@pytest.mark.parametrize(
    "code", ["print('fine')", "raise SystemExit('no: not a model')", "open(OUT + '/x', 'w').write('made')"]
)
def test_what_does_no_harm_passes(tmp_path: Path, code: str) -> None:
    verdict = run(tmp_path, code)
    assert verdict.wrong == ()
    assert verdict.word == ("refused" if "Exit" in code else "harmless")


CRIMES = {
    "opens a file": ("open(OUTSIDE + '/secret.txt')", "opened outside: secret.txt"),
    "opens it by another name": ("import os; os.link(OUTSIDE + '/secret.txt', OUT + '/x'); open(OUT + '/x')", "opened outside"),
    "shows the secret": ("print(open(OUTSIDE + '/secret.txt').read())", "shows the secret"),
    "shows it in base64": (
        "import base64; print(base64.b64encode(b'x' + open(OUTSIDE + '/secret.txt', 'rb').read()).decode())", "shows the secret",
    ),
    "copies the secret": ("import shutil; shutil.copy(OUTSIDE + '/secret.txt', OUT + '/x')", "the secret is in work/out"),
    "keeps it in gzip": (
        "import gzip; gzip.open(OUT + '/x.gz', 'w').write(open(OUTSIDE + '/secret.txt', 'rb').read())", "the secret is in",
    ),
    "links to it": ("import os; os.symlink(OUTSIDE + '/secret.txt', HOME + '/x')", "a link out"),
    "links to it hard": ("import os; os.link(OUTSIDE + '/secret.txt', OUT + '/x')", "the secret is in"),
    "overwrites a file": ("open(OUTSIDE + '/keep.txt', 'r+').write('gone')", "changed outside: outside/keep.txt"),
    "adds a file": ("open(OUTSIDE + '/new', 'w')", "written outside: outside/new"),
    "removes a file": ("import os; os.unlink(OUTSIDE + '/keep.txt')", "removed outside: outside/keep.txt"),
    "writes to the current folder": ("open('new', 'w')", "written outside: work/new"),
    "runs code": ("open(MARKER, 'w')", "ran: the marker exists"),
    "takes time": ("x = 0\nwhile True: x += 1", "CPU more than harmless"),
    "takes time in a child": (
        "import os\nif not os.fork():\n while True: pass\nos.wait()", "CPU more than harmless",
    ),
    "takes memory": ("x = bytearray(600_000_000)\nfor i in range(0, len(x), 4096): x[i] = 1", "MB of memory"),
    "takes disk": ("open(OUT + '/x', 'wb').write(bytes(510_000_000))", "wrote 5"),
    "shows a traceback": ("{}['hostile']", "a traceback: KeyError"),
    "dies of a signal": ("import os; os.abort()", "ended by SIGABRT"),
    "fails without a word": ("raise SystemExit(1)", "failed without a word"),
    "shows an escape": ("print('\\x1b[2J')", "control character U+001B"),
    "asks the network": (
        "import os, urllib.request as r\ntry: r.urlopen(os.environ['HF_ENDPOINT'] + '/x', timeout=2)\nexcept OSError: pass",
        "asked the network: GET ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CRIMES)
def test_every_harm_is_found(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.hostile.sandbox.CPU", 1)
    code, problem = CRIMES[name]
    verdict = run(tmp_path, code)
    assert verdict.word == "FAILED"
    assert any(problem in one for one in verdict.wrong), verdict.wrong


def test_a_command_that_waits_for_ever_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.hostile.sandbox.PATIENCE", 0.5)
    pids = tmp_path / "pids"
    say = f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}} ')"
    code = f"import os, time\nif not os.fork(): os.setsid()\n{say}\ntime.sleep(300)"
    verdict = run(tmp_path, code)
    assert any("did not end" in one for one in verdict.wrong)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split())


def test_yes_is_on_the_standard_input(tmp_path: Path) -> None:
    assert "said y\n" in run(tmp_path, "print('said', input())").done[0].output


def test_what_a_case_allows_is_no_harm(tmp_path: Path) -> None:
    assert run(tmp_path, "open(OUTSIDE + '/secret.txt')", may_open=True).wrong == ()


def test_a_verdict_is_told_in_80_columns(tmp_path: Path) -> None:
    verdict = run(tmp_path, "print(open(OUTSIDE + '/secret.txt').read()); raise ValueError('x' * 200)")
    lines = command.row("a name " * 20, verdict).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= command.WIDTH
    assert command.totals({"one": verdict}, 1.0).endswith("0 refused, 0 harmless, 1 FAILED")


def test_there_are_cases_of_every_topic() -> None:
    assert len(CASES) >= 100
    for topic in (
        "weight_map",
        "auto_map",
        "pickle",
        "safetensors",
        "GGUF",
        "records",
        "SQL",
        "figure",
        "manifest",
        "text",
        "wheel",
    ):
        assert any(topic in name for name in CASES), topic
