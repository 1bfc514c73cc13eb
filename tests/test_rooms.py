"""What all code keeps to.

The tree is the pipeline: a room imports only rooms before it, and what must start fast imports nothing heavy. Everything public
says what it is. No tensor is made on whatever device is the default; what runs on another one is run in ``test_elsewhere``.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "sparsebench"
ORDER = [
    "errors", "bounded", "paths", "escape", "children", "devices", "processor", "environment", "energy", "heap",
    "units", "progress", "plugins",
    "manifest", "sources", "native", "models", "steps", "structure", "storage", "runtime", "benchmarks", "plan", "records",
    "run", "ledger", "figures", "report", "arguments", "notebook", "cli",
]  # fmt: skip
MODELS = ["files", "shape", "modules", "replay"]
"""The subjects of models/ in order; what lies beside them there may import all four."""
TYPE = re.compile("[A-Z][a-z][A-Za-z0-9]*")
HEAVY = ["torch", "transformers", "deepspeed", "lm_eval", "datasets", "matplotlib"]


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its path in it."""
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports() -> list[tuple[str, str, str]]:
    """(module, its room, the room of another that it imports)."""
    found = []
    for module, others in modules().items():
        room = module.split(".")[1] if "." in module else module
        found += [(module, room, other.split(".")[1]) for other in others if other.count(".")]
    return [one for one in found if one[2] in ORDER]


def test_rooms_import_only_earlier_rooms() -> None:
    known = [one for one in imports() if one[1] in ORDER]
    wrong = [f"{name} imports {later}" for name, room, later in known if ORDER.index(later) > ORDER.index(room)]
    assert not wrong
    assert len(imports()) > 100, "the check must see the imports"


def test_subjects_of_models_import_only_earlier_ones() -> None:
    imported = {name: others for name, others in modules().items() if name.startswith("sparsebench.models.")}
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
    for path, tree in trees().items():
        for node in tree.body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):  # aliases are written like classes
                names = [name.id for name in node.targets if isinstance(name, ast.Name) and TYPE.fullmatch(name.id)]
            for name in names:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(path)
    assert len(places) > 200, "the check must see the classes"
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_a_run_and_the_ledger_know_nothing_of_each_other_but_records() -> None:
    assert not [file for file, room, name in imports() if {room, name} == {"run", "ledger"}]
    assert {room for _, room, name in imports() if name == "records"} >= {"run", "ledger"}


@cache
def modules() -> dict[str, set[str]]:
    """Each module of the package with the modules of it that it imports, wherever in its text."""
    named = {
        f"sparsebench/{path}"[:-3].replace("/", ".").removesuffix(".__init__"): tree for path, tree in trees().items()
    }
    found: dict[str, set[str]] = {}
    for name, tree in named.items():
        wanted = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import name`: a module of the package, or something that its __init__ defines.
                full = [f"{node.module}.{alias.name}" for alias in node.names]
                wanted |= {one if one in named else node.module for one in full}
        found[name] = {one for one in wanted & set(named) if one != name}
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    TopologicalSorter(modules()).prepare()  # raises CycleError


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


def public(node: ast.Module | ast.ClassDef, way: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    """The public functions and classes of a module, and their methods, each with its dotted name."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef | ast.ClassDef) and not one.name.startswith("_"):
            yield f"{way}{one.name}", one
            if isinstance(one, ast.ClassDef):
                yield from public(one, f"{one.name}.")


def test_everything_public_and_every_module_says_what_it_is() -> None:
    """But for methods that keep a promise explained elsewhere."""
    found = [(path, name, node) for path, tree in trees().items() for name, node in public(tree)]
    methods = {name.partition(".")[2] for _, name, node in found if "." in name and ast.get_docstring(node)}
    bare = [(path, name) for path, name, node in found if not ast.get_docstring(node)]
    assert [(path, name) for path, name in bare if name.partition(".")[2] not in methods] == []
    assert len(found) > 500
    assert [path for path, tree in trees().items() if tree.body and not ast.get_docstring(tree)] == []


MAKERS = (
    "arange empty empty_strided eye full linspace logspace ones rand randint randn randperm tensor zeros as_tensor asarray"
).split()
STAYS = "of a step that stays on the CPU: it reads and writes files, or replays a block at a time"
GROUPED = "neurons are grouped, and routers trained, on the CPU"
ON_THE_CPU = {
    "models/shape/axes.py": "marks of what goes, counted on the CPU",
    "models/files/checkpoint.py": "the bytes of a file",
    "models/random_weights.py": "weights that are drawn on their way into a file",
    "runtime/kernels/linear.py": "what C++ kernels write",
    "steps/floor.py": "weights on their way into a file",
    **dict.fromkeys((f"steps/moefy/{name}.py" for name in ("activity", "grouping", "making", "routers")), GROUPED),
    **dict.fromkeys((f"steps/shrink/{name}.py" for name in "compensation depth labelled scores".split()), STAYS),
    "steps/cut_model.py": STAYS,
    "steps/skip/magnitudes.py": "counts, which stay on the CPU",
    "steps/trim/weights.py": STAYS,
    "steps/samples.py": "texts in tokens, before a model reads them",
    "storage/packed.py": "the bytes of a file",
    "steps/prune/methods/scores.py": "draws by the CPU's generator, for methods that look at weights alone",
}
"""Files whose tensors are a CPU's, and why."""


def bare(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every call that makes a tensor without saying where, and of every ``.cuda()``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        makes = of_torch and node.func.attr in MAKERS
        says = any(word.arg in ("device", None) for word in node.keywords)
        if (makes and not says) or (node.func.attr == "cuda" and not node.args and not of_torch):
            yield node.lineno, ast.unparse(node)


def test_every_tensor_says_where_it_lies() -> None:
    found = {name: calls for name, tree in trees().items() if (calls := [*bare(tree)])}
    assert {name: calls for name, calls in found.items() if name not in ON_THE_CPU} == {}
    assert set(ON_THE_CPU) <= set(found), "an exception that needs to be none"
    text = "torch.zeros(3)\nweight.cuda()\ntorch.ones(2, device=x.device)\ntorch.full(shape, 1, **like)\ntorch.cuda()\n"
    assert [line for line, _ in bare(ast.parse(text))] == [1, 2]
