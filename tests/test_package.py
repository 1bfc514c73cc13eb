"""The wheel, built from the sdist: complete, installed where no checkout is near, and used from another folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from sparsebench import __version__

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.long]


def tracked() -> list[Path]:
    """The files that git knows, and those it would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [path for path in map(Path, done.stdout.splitlines()) if (ROOT / path).exists()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``python -m build`` makes an sdist of a clean copy, and the wheel out of that."""
    clean = tmp_path_factory.mktemp("clean")
    for path in tracked():
        if path.parts[0] != "ledger":
            (clean / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, clean / path, follow_symlinks=False)
    out = clean / "dist"
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(clean)], check=True)
    assert (out / f"sparsebench-{__version__}.tar.gz").is_file()
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed command, in an environment that has the wheel and sees this one's other packages."""
    home = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    # A path in a .pth file brings packages, but not the .pth files beside them: an editable install stays unseen.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin" / "sparsebench"


def call(program: Path, folder: Path, *words: str) -> str:
    plain = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([program, *words], cwd=folder, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.as_posix() for path in tracked() if path.parts[0] == "sparsebench" and (ROOT / path).is_file()}
    wanted |= {f"sparsebench/figures/shipped/{path.name}" for path in (ROOT / "figures").glob("*.sql")}
    assert wanted - names == set()
    assert {name for name in names if name.startswith("sparsebench/")} - wanted == set()
    assert f"sparsebench-{__version__}.dist-info/licenses/LICENSE" in names


def test_it_is_the_installed_program_that_runs(program: Path, tmp_path: Path) -> None:
    assert call(program, tmp_path, "--version") == f"sparsebench {__version__}\n"
    where = [program.with_name("python"), "-c", "import sparsebench; print(sparsebench.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(program.parent.parent)


def test_it_plans_figures_and_reports_far_from_the_checkout(program: Path, tmp_path: Path) -> None:
    call(program, tmp_path, "init", "mine.yaml")
    shutil.copy(ROOT / "quickstart.yaml", tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # the quickstart's own model lies there
    for manifest in ("mine.yaml", "quickstart.yaml"):
        assert len(json.loads(call(program, tmp_path, "plan", manifest, "--offline", "--json"))) > 10
    shown = json.loads(call(program, tmp_path, "figures", "--list", "--json"))
    assert {row["name"] for row in shown} == {path.stem for path in (ROOT / "figures").glob("*.sql")}
    assert json.loads(call(program, tmp_path, "schema"))["title"] == "sparsebench manifest"
    assert json.loads(call(program, tmp_path, "score", "--list", "--json"))


def test_its_native_code_and_templates_are_found(program: Path, tmp_path: Path, tiny_llama: Path) -> None:
    call(program, tmp_path, "apply", str(tiny_llama), "prune: magnitude, sparsity: 0.5", "--out", "made")
    call(program, tmp_path, "pack", "made")
    call(program, tmp_path, "unpack", "made.packed", "--out", "back")
    assert (tmp_path / "back" / "model.safetensors").is_file()
    (tmp_path / "m.yaml").write_text(
        f'version: 1\nmodels: [{{name: m, source: "path:{tiny_llama}", family: decoder}}]\nruntime: null\n'
    )
    call(program, tmp_path, "run", "m.yaml")
    assert "m" in call(program, tmp_path, "sql", "select model from results", "--format", "csv")
    call(program, tmp_path, "report", "--out", "report.md")
    assert (tmp_path / "report.md").read_text().startswith("#")
