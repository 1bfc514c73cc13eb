"""What a person, a disk or a stranger gets wrong is told in a sentence that names it: never a traceback."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adversarial import benign
from tests.cli.conftest import MANIFEST, ROOT


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ledger: taken", "not a ledger"),
        ("ledger: tiny.yaml", "not a DuckDB file"),
        ("work_dir: tiny.yaml", "tiny.yaml"),
        ("ledger: ~nobody-of-that-name/l.duckdb", "no user nobody-of-that-name"),
        ('ledger: "a\\0b.duckdb"', "`\\0`"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(line: str, says: str, run: Callable[..., Any], tmp_path: Path) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "tiny.yaml").write_text(f"{MANIFEST}{line}\n")
    before = sorted(tmp_path.rglob("*"))
    code, said = run("run", "tiny.yaml")
    assert code == 2 and says in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_readonly_cache_is_blamed(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    code, said = run("inspect", "model")
    assert code == 2 and "SPARSEBENCH_CACHE" in said and f"the cache {tmp_path / 'file' / 'cache'}" in said


FIRST, SHARD = "model.embed_tokens.weight", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("size", [-8, 10**9])
def test_sizes_that_no_model_has_are_refused(size: int, run: Callable[..., Any], tmp_path: Path) -> None:
    benign.model(tmp_path / "model", {**benign.LLAMA, "hidden_size": size, "num_attention_heads": 1})
    (tmp_path / "tiny.yaml").write_text(MANIFEST)
    code, said = run("plan", "tiny.yaml")
    assert code == 2 and "tiny" in said and "parameters" in said


@pytest.mark.parametrize("place", ['pattern: "\\ud800"', 'sparsity: 0.5, "\\ud800": 1'])
def test_half_of_a_character_in_a_manifest_is_shown(place: str, run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(MANIFEST.replace("sparsity: 0.5", place))
    code, said = run("plan", "odd.yaml")
    assert code == 2 and "odd.yaml:3" in said


def test_a_manifest_whose_name_no_record_can_carry_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    long = "x" * 245 + ".yaml"
    (tmp_path / long).write_text(MANIFEST)
    code, said = run("plan", long)
    assert code == 2 and "name" in said


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback() -> None:
    program = (
        "import builtins, os, runpy, signal\n"
        "real = builtins.__import__\n"
        "def hook(name, *more, **words):\n"
        "    if name == 'typer':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *more, **words)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "builtins.__import__ = hook\n"
        "runpy.run_module('sparsebench', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


HEAD = "-- title: t $\\bad$\n-- kind: KIND\n-- x: x\n-- y: y\n"
FIGURES: dict[str, tuple[str, int]] = {
    "bad mathtext": ("select 1 as x, 2 as y", 0),
    "a list": ("select 1 as x, [1, 2] as y", 2),
    "an interval": ("select interval 1 day as x, 2 as y", 2),
    "text": ("select 1 as x, 'two' as y", 2),
    "huge integers": ("select 170141183460469231731687303715884105727 as x, 2 as y union all select 1, 3", 0),
    "no numbers": ("select 'nan'::double as x, 'inf'::double as y", 0),
    "text with mathtext": ("select '$\\bad$' as x, 2 as y", 0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_rows(name: str, run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    sql, wanted = FIGURES[name]
    (tmp_path / "figures").mkdir()
    kind = "bars" if "mathtext" in name else "line"
    (tmp_path / "figures" / "own.sql").write_text(HEAD.replace("KIND", kind) + sql)
    code, said = run("figures", "own", "--format", "svg", "--out", "out", "--ledger", shared / "ledger.duckdb")
    assert code == wanted, said
    assert not wanted or "own.sql" in said


@pytest.mark.parametrize("kind", ["not UTF-8", "a folder", "a link to nowhere"])
def test_a_figure_that_is_no_text(kind: str, run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "figures" / "own.sql"
    path.parent.mkdir()
    if kind == "not UTF-8":
        path.write_bytes(b"-- title: \xff\n")
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    code, said = run("figures", "own", "--out", "out", "--ledger", shared / "ledger.duckdb")
    assert code == 2 and "own.sql" in said


def test_streams_that_are_closed_or_narrow(shared: Path) -> None:
    program = f"{sys.executable} -m sparsebench"
    ledger = shared / "ledger.duckdb"
    commands = {
        f"{program} --help | head -1": 0,
        f"{program} doctor --help >&-": 0,
        f"{program} sql \"select 'é → ✓' as x\" --ledger {ledger}": 0,
        f"{program} sql 'select 1' --ledger {ledger} 2>&-": 0,
    }
    for command, code in commands.items():
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            capture_output=True,
            check=False,
            env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == code and b"Traceback" not in done.stderr, (command, done.stderr)


@pytest.mark.parametrize(
    ("task", "named"),
    [("perplexity", "no such folder"), ("classify", "--manifest"), ("picqa", "piqa"), ("zzz", "score --list")],
)
def test_a_task_that_score_cannot_take_by_name_has_a_way_out(task: str, named: str, run: Callable[..., Any]) -> None:
    """A kind of one's own data may be a task as well."""
    code, shown = run("score", "no-such-model", "--task", task)
    assert code == 2 and named in shown


@pytest.mark.parametrize("second", [("--task", "piqa"), ("--manifest", "tasks.yaml")])
def test_a_task_that_is_named_twice_is_refused(
    second: tuple[str, str], run: Callable[..., Any], tmp_path: Path
) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "tasks.yaml").write_text(f"{MANIFEST}benchmarks: {{decoder: [{{task: piqa, num_fewshot: 5}}]}}\n")
    code, shown = run("score", "path:model", "--task", "piqa", *second)
    assert code == 2 and "piqa: named twice" in shown
