"""The tree is the pipeline: a room imports only rooms before it, and what must start fast imports nothing heavy."""

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "sparsebench"
ORDER = [
    "errors", "bounded", "paths", "escape", "children", "devices", "processor", "environment", "energy", "heap",
    "progress", "plugins",
    "manifest", "sources", "native", "models", "steps", "structure", "storage", "runtime", "benchmarks", "plan", "records",
    "run", "ledger", "figures", "report", "arguments", "notebook", "cli",
]  # fmt: skip
MODELS = ["files", "shape", "modules", "replay"]
"""The subjects of models/ in order; what lies beside them there may import all four."""
TYPE = re.compile("[A-Z][a-z][A-Za-z0-9]*")
HEAVY = ["torch", "transformers", "deepspeed", "lm_eval", "datasets", "matplotlib"]


@cache
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


def test_subjects_of_models_import_only_earlier_ones() -> None:
    imported = {name: others for name, others in modules(ROOT).items() if name.startswith("sparsebench.models.")}
    subjects = {name: name.split(".")[2] for name in imported if name.split(".")[2] in MODELS}
    wrong = [
        f"{name} imports {other}"
        for name, subject in subjects.items()
        for other in imported[name]
        if other in imported and MODELS.index(subjects.get(other, "replay")) > MODELS.index(subject)
    ]
    assert not wrong
    assert set(subjects.values()) == set(MODELS)


def test_a_name_of_a_class_or_type_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):  # aliases are written like classes
                names = [name.id for name in node.targets if isinstance(name, ast.Name) and TYPE.fullmatch(name.id)]
            for name in names:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert len(places) > 200, "the check must see the classes"
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_a_run_and_the_ledger_know_nothing_of_each_other_but_records() -> None:
    assert not [file for file, room, name in imports() if {room, name} == {"run", "ledger"}]
    assert {room for _, room, name in imports() if name == "records"} >= {"run", "ledger"}


def modules(root: Path) -> dict[str, set[str]]:
    """Each module of a package with the modules of it that it imports, wherever in its text."""
    paths = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        wanted = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import name`: a module of the package, or something that its __init__ defines.
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted |= {one if one in paths else node.module for one in full}
        found[name] = {one for one in wanted & set(paths) if one != name}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(modules(ROOT)).prepare()  # raises CycleError


def test_nobody_imports_the_cli() -> None:
    assert not [file for file, room, name in imports() if name == "cli" and room not in ("cli", "__main__")]


def test_help_needs_no_heavy_library() -> None:
    commands = [["--help"], ["sql", "--help"], ["figures", "--list"], ["run", "--help"]]
    code = f"""
import sys
from sparsebench.cli.app import main
for words in {commands!r}:
    sys.argv = ["sparsebench", *words]
    try:
        main()
    except SystemExit:
        pass
    print(words, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [f"{words} []" for words in commands]
