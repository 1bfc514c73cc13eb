"""The tree is the pipeline: a room imports only rooms before it, and what must start fast imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "sparsebench"
ORDER = [
    "errors", "bounded", "environment", "plugins", "children", "manifest", "sources", "native", "models", "sparsify", "structure",
    "storage", "runtime", "benchmarks", "plan", "run", "ledger", "figures", "report", "cli",
]  # fmt: skip
HEAVY = ["torch", "transformers", "deepspeed", "lm_eval", "datasets", "matplotlib"]


def imports() -> list[tuple[str, str, str]]:
    """(file, its room, the room it imports)."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "sparsebench":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module.removeprefix("sparsebench.").split(".")[0]] * node.module.startswith(
                    "sparsebench."
                )
            found += [(str(path.relative_to(ROOT)), room, name) for name in names if name in ORDER]
    return found


def test_rooms_import_only_earlier_rooms() -> None:
    wrong = [
        f"{file} imports {later}"
        for file, room, later in imports()
        if room in ORDER and ORDER.index(later) > ORDER.index(room)
    ]
    assert not wrong
    assert len(imports()) > 100, "the check must see the imports"


def test_nobody_imports_the_cli() -> None:
    assert not [file for file, room, name in imports() if name == "cli" and room not in ("cli", "__main__")]


@pytest.mark.parametrize("words", [["--help"], ["sql", "--help"], ["figures", "--list"], ["run", "--help"]])
def test_help_needs_no_heavy_library(words: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["sparsebench", *{words!r}]
from sparsebench.cli.app import main
try:
    main()
except SystemExit:
    pass
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]"), done.stderr
