"""No tensor is made on whatever device is the default. What runs on another device is run in ``test_elsewhere``."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent / "sparsebench"
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
    **dict.fromkeys(
        (f"steps/shrink/{name}.py" for name in "compensation depth labelled scores".split()),
        STAYS,
    ),
    "steps/cut_model.py": STAYS,
    "steps/skip/magnitudes.py": "counts, which stay on the CPU",
    "steps/trim/weights.py": STAYS,
    "steps/samples.py": "texts in tokens, before a model reads them",
    "storage/packed.py": "the bytes of a file",
    "steps/prune/methods/scores.py": "draws by the CPU's generator, for methods that look at weights alone",
}
"""Files whose tensors are a CPU's, and why."""


def bare(text: str) -> Iterator[tuple[int, str]]:
    """Line and text of every call that makes a tensor without saying where, and of every ``.cuda()``."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        makes = of_torch and node.func.attr in MAKERS
        says = any(word.arg in ("device", None) for word in node.keywords)
        if (makes and not says) or (node.func.attr == "cuda" and not node.args and not of_torch):
            yield node.lineno, ast.unparse(node)


def test_every_tensor_says_where_it_lies() -> None:
    found, files = [], sorted(ROOT.rglob("*.py"))
    for path in files:
        name = str(path.relative_to(ROOT))
        found += [f"{name}:{line}: {text}" for line, text in bare(path.read_text()) if name not in ON_THE_CPU]
    assert found == []
    assert len(files) > 200


def test_the_list_of_exceptions_holds_nothing_that_needs_none() -> None:
    assert [name for name in ON_THE_CPU if not any(bare((ROOT / name).read_text()))] == []


def test_what_is_bare_is_found() -> None:
    text = "torch.zeros(3)\nweight.cuda()\ntorch.ones(2, device=x.device)\ntorch.full(shape, 1, **like)\ntorch.cuda()\n"
    assert [line for line, _ in bare(text)] == [1, 2]
