"""A command that starts others ends with all of them."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparsebench import children


def seeing(folder: Path) -> dict[str, str]:
    """The environment of a process that finds modules in a folder."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(children.__file__).parents[1])])}


def test_what_a_command_says_is_kept() -> None:
    said = "import os, sys; print(os.environ['WORD']); sys.exit('no')"
    done = children.run([sys.executable, "-c", said], 60, {"WORD": "yes"})
    assert (done.returncode, done.stdout, done.stderr) == (1, "yes\n", "no\n")
    # A compiler says what is no UTF-8, of a path or in the words of another locale.
    done = children.run([sys.executable, "-c", r"import os; os.write(2, b'Datei \xfcber'); os._exit(1)"], 60)
    assert (done.returncode, done.stderr) == (1, "Datei \ufffdber")


def test_a_fork_that_cannot_print_ends_all_the_same(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sparsebench.children import call_in_fork\n"
        "def work():\n    sys.stdout = open('/dev/full', 'w')\n    print('lost')\n    return 7\n"
        "try:\n    print(call_in_fork(work, lambda child: None), 'of the fork')\nfinally:\n    print('the end, once')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "7 of the fork\nthe end, once\n", done.stderr


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


def test_a_module_ends_with_its_parent_while_it_still_imports(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    program = (
        "import os, subprocess; from sparsebench import children\n"
        "subprocess.run(children.module_command('endless'), env=os.environ | children.import_variables())"
    )
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, env=seeing(tmp_path), stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    child.wait(60)


def test_a_module_does_not_begin_whose_parent_was_gone_before(tmp_path: Path) -> None:
    (tmp_path / "begun.py").write_text("print('begun')")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    words = [str(gone.pid) if word == str(os.getpid()) else word for word in children.module_command("begun")]
    for command, ending in ((words, (1, "")), (children.module_command("begun"), (0, "begun\n"))):
        done = subprocess.run(command, env=seeing(tmp_path), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == ending


def _alive(words: str) -> list[psutil.Process]:
    # What has ended meanwhile has no command line.
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == words.split()]


@pytest.mark.parametrize("whose", ["command", "shell"])
def test_what_a_command_started_ends_when_the_command_is_killed(whose: str, tmp_path: Path) -> None:
    """A compiler's own processes are no Python of ours. The shell is one that the command has started, as torch does
    ninja, and of whose end it makes a failure of its own."""
    shell_id, sleeper = tmp_path / "shell", f"sleep 60{os.getpid()}"
    # In a process group of its own, as ninja starts compilers, and without a pipe of the command's that could end it.
    shell = f"set -m; {sleeper} </dev/null >/dev/null 2>&1 & echo $$ > {shell_id}; wait"
    command = ["/bin/sh", "-c", shell]
    if whose == "shell":
        command = [sys.executable, "-c", f"import subprocess, sys; sys.exit(subprocess.run({command}).returncode < 0)"]
    with ThreadPoolExecutor() as threads:
        run = threads.submit(children.run, command, 600)
        until = time.monotonic() + 60
        while not (_alive(sleeper) and shell_id.exists() and shell_id.read_text()) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(int(shell_id.read_text()), signal.SIGKILL)
        assert run.result(60).returncode == (-signal.SIGKILL if whose == "command" else 1)
    assert not psutil.wait_procs(_alive(sleeper), timeout=60)[1]


def test_what_a_killed_process_leaves_stays_below_the_one_that_began_it(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(
        "import subprocess\nsubprocess.run(['/bin/sh', '-c', 'sleep 600 & echo $! $$; wait'])\ninput()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(children.module_command("driver"), env=seeing(tmp_path), **pipes) as begun:
        assert begun.stdout is not None
        sleeper, shell = map(int, begun.stdout.readline().split())
        killed = psutil.Process(shell)
        killed.kill()
        psutil.wait_procs([killed], timeout=60)
        assert psutil.Process(sleeper).ppid() == begun.pid
        psutil.Process(sleeper).kill()
        begun.kill()
