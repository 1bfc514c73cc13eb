"""What holds for every method that gets layers one by one, the table of methods, and scores against their formulas."""

import math
from pathlib import Path

import pytest
import torch

from sparsebench.errors import ModelError, UserError
from sparsebench.steps.prune import registry
from sparsebench.steps.prune.blockwise import solve_quotas
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.methods import scores
from sparsebench.steps.prune.registry import BUILT_IN, Method, methods
from tests.steps.prune.methods.synthetic import activations, inputs_of, layer_of, weights_of

METHODS = [pytest.param(method, id=name) for name, method in methods().items() if not method.run]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EVERY = pytest.mark.parametrize("method", METHODS)


def solved(method: Method, layers: list[Layer], quotas: list[Quota]) -> list[list[Solution]]:
    found = [list(solutions) for solutions in solve_quotas(method, layers, quotas)]
    for layer, solutions in zip(layers, found, strict=True):
        for solution in solutions:
            assert isinstance(solution, Solution) and bool(torch.isfinite(solution.weights).all())
            assert (solution.weights.dtype, solution.weights.shape) == (layer.weights.dtype, layer.weights.shape)
            assert solution.weights.is_contiguous()
    return found


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_checkpoints_precision_is_kept_and_its_weights_are_not_modified(method: Method, dtype: torch.dtype) -> None:
    weights = weights_of(16, 50, dtype=dtype)
    before = weights.clone()
    ((solution,),) = solved(method, [layer_of(weights, activations(50, 400))], [Quota(0.5, "layer")])
    assert torch.equal(weights, before)
    assert int((solution.weights == 0).sum()) == 400


@EVERY
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "1:100", "2x2", "64x64"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 40), (40, 1)])
def test_odd_shapes(method: Method, rows: int, columns: int, pattern: str) -> None:
    layer = layer_of(weights_of(rows, columns), activations(columns, 300))
    quotas = [Quota(sparsity, kind, pattern) for sparsity in (0.0, 0.5, 1.0) for kind in ("layer", "row")]
    (solutions,) = solved(method, [layer], quotas)
    if pattern == "unstructured":
        assert not solutions[-1].weights.any()
        assert int((solutions[2].weights == 0).sum()) == round(0.5 * rows * columns)


@EVERY
def test_dead_inputs_and_weights_that_are_zero_already(method: Method) -> None:
    read, sparse = activations(50, 400), weights_of(12, 50)
    read[:, [0, 17]] = 0
    sparse[sparse.abs() < 1] = 0
    inputs = inputs_of(read)
    layers = [Layer("zero", torch.zeros(5, 50), 0, inputs), Layer("sparse", sparse, 0, inputs)]
    nothing, found = solved(method, layers, [Quota(0.9, "layer"), Quota(0.5, "layer")])
    assert not any(solution.weights.any() for solution in nothing)
    assert int((found[0].weights == 0).sum()) >= 540
    if method.score and method.needs:
        ((dead,),) = solved(method, [layer_of(weights_of(12, 50), read)], [Quota(2 / 50, "row")])
        assert not dead.weights[:, [0, 17]].any()


@EVERY
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_and_inputs_are_refused_by_name(method: Method, bad: float) -> None:
    weights = weights_of(4, 8, dtype=torch.bfloat16)
    weights[2, 3] = bad
    with pytest.raises(ModelError, match=r"layers\.5\.up: NaN or infinite values"):
        solved(method, [layer_of(weights, activations(8, 30), "layers.5.up")], [Quota(0.5, "layer")])
    if method.needs:
        read = activations(8, 30)
        read[2, 2] = bad
        with pytest.raises(ModelError, match=r"layers\.5\.up: NaN or infinite activations"):
            solved(method, [layer_of(weights_of(4, 8), read, "layers.5.up")], [Quota(0.5, "layer")])
        with pytest.raises(ValueError, match="w: no statistics"):
            solved(method, [Layer("w", weights_of(2, 2))], [Quota(0.5, "layer")])


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"score": "a:b", "solve": "a:b"},
        {"score": "a:b", "needs": "everything"},
        {"score": "a:b", "granularities": ()},
        {"score": "a:b", "granularities": ("column",)},
    ],
)
def test_a_row_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="method mine"):
        Method("mine", summary="", **wrong)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wanda_and_ria_are_their_formulas(dtype: torch.dtype) -> None:
    layer = layer_of(weights_of(12, 40, dtype=dtype), read := activations(40, 100))
    size = [[abs(value) for value in row] for row in layer.weights.float().tolist()]
    columns = [sum(column) for column in zip(*size, strict=True)]
    norms = [math.sqrt(sum(value * value for value in column)) for column in read.T.tolist()]
    wanda = [[w * norm for w, norm in zip(row, norms, strict=True)] for row in size]
    ria = [[(w / columns[j] + w / sum(row)) * norms[j] ** 0.5 for j, w in enumerate(row)] for row in size]
    assert torch.allclose(scores.wanda_scores(layer), torch.tensor(wanda), rtol=1e-6)
    assert torch.allclose(scores.ria_scores(layer), torch.tensor(ria), rtol=1e-5)


def test_every_file_of_a_method_has_its_row() -> None:
    folder = Path(registry.__file__).parent / "methods"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == {
        (method.score or method.solve or method.run).partition(":")[0].rpartition(".")[2] for method in BUILT_IN
    }
