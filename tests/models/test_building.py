"""Folders are built where no other process builds the same, and what the dead left there goes."""

import os
import subprocess
import sys
from pathlib import Path

from sparsebench.models.files.building import new_partial


def test_two_processes_do_not_meet_and_the_dead_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "model[1]"
    (new_partial(folder) / "half").touch()
    ours = new_partial(folder)
    assert not list(ours.iterdir()), "what this process had begun is begun again"
    script = (
        "from pathlib import Path; from sparsebench.models.files.building import new_partial; "
        f"print(new_partial(Path({str(folder)!r})))"
    )
    theirs = Path(
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.strip()
    )
    assert theirs.is_dir()
    assert theirs != ours
    assert str(os.getpid()) in ours.name
    assert new_partial(folder) == ours
    assert not theirs.exists(), "its process is gone"
    ours.rename(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model[1]"]


def test_a_folder_that_is_replaced_is_there_all_the_while(tmp_path: Path) -> None:
    """Another run may read it."""
    folder = tmp_path / "model"
    script = (
        "import sys; from pathlib import Path; from sparsebench.models.files.building import new_partial, rename_whole\n"
        "folder = Path(sys.argv[1])\n"
        "for number in range(300):\n"
        "    partial = new_partial(folder); (partial / 'config.json').write_text(str(number)); rename_whole(partial, folder)\n"
        "    if number == 0: print('there', flush=True)\n"
    )
    maker = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    assert maker.stdout.readline() == "there\n"
    read = 0
    while maker.poll() is None:
        assert (folder / "config.json").read_text().isdigit()
        read += 1
    maker.stdout.close()
    assert read and maker.returncode == 0
    assert (folder / "config.json").read_text() == "299"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
