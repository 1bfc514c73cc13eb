"""Everything public says what it is: modules, classes, functions, and methods that do not keep a promise explained elsewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "sparsebench"
Documented = ast.FunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, way: str = "") -> Iterator[tuple[str, Documented]]:
    """The public functions and classes of a module, and their methods, each with its dotted name."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef | ast.ClassDef) and not one.name.startswith("_"):
            yield f"{way}{one.name}", one
            if isinstance(one, ast.ClassDef):
                yield from public(one, f"{one.name}.")


def test_everything_public_and_every_module_says_what_it_is() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    found = [(path, name, node) for path, tree in trees.items() for name, node in public(tree)]
    methods = {name.partition(".")[2] for _, name, node in found if "." in name and ast.get_docstring(node)}
    bare = [
        f"{path.relative_to(PACKAGE.parent)}:{node.lineno}: {name}"
        for path, name, node in found
        if not ast.get_docstring(node) and name.partition(".")[2] not in methods
    ]
    assert bare == []
    assert len(found) > 500
    assert [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []
