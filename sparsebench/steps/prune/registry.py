"""The table of methods. A method is one module and one row here; third parties add a row by an entry point.

An entry point in the group ``sparsebench.methods`` names a ``Method``.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cache
from pkgutil import resolve_name

from sparsebench.errors import UserError
from sparsebench.plugins import table
from sparsebench.steps.contract import Settings
from sparsebench.steps.prune.contract import Score, Solve
from sparsebench.steps.prune.settings import ALPS, Magnitude, Mask, Prune, SparseGPT
from sparsebench.steps.prune.trained import Elsa, Gradual
from sparsebench.steps.recover.settings import TrainingSettings


@dataclass(frozen=True)
class Method:
    """One pruning method, which has exactly one of three functions.

    ``score`` ranks weights, ``solve`` also updates those that stay, and ``run`` makes whole variants by itself. Each is
    spelled ``module:function`` and imported when used, as it may import torch.
    """

    name: str
    _: KW_ONLY
    score: str = ""
    solve: str = ""
    run: str = ""
    """A ``contract.Run`` that makes the method's steps by itself; its settings need not be those of ``Prune``."""
    needs: str = ""
    """The statistics that calibration must gather: none, ``squares`` (Σ x_j²) or ``gram`` (Σ x xᵀ as well)."""
    granularities: tuple[str, ...] = ("layer",)
    """The groups within which weights may compete; the first is the default, as published."""
    consumes: bool = False
    """Whether ``solve`` overwrites the gram, so that it must come last."""
    version: int = 1
    """A number raised by hand when a change to the method can change its results."""
    settings: type[Settings] = Prune
    """The method's settings in a manifest; ``solve`` gets them with a quota."""
    libraries: tuple[str, ...] = ()
    """The libraries that it calculates with besides torch."""
    summary: str
    paper: str = ""

    def __post_init__(self) -> None:
        if [bool(way) for way in (self.score, self.solve, self.run)].count(True) != 1:
            ways = "one of `score`, `solve` and `run` is needed"
            raise UserError(f"method {self.name}: {ways}", "see steps/prune/registry.py")
        if self.needs not in ("", "squares", "gram"):
            raise UserError(f"method {self.name}: needs {self.needs!r}", "nothing, squares or gram")
        if not (self.granularities or self.run) or not set(self.granularities) <= {"global", "layer", "row"}:
            raise UserError(f"method {self.name}: granularities {self.granularities}", "some of global, layer, row")

    @property
    def trains(self) -> bool:
        """Whether ``run`` trains the whole model, as ``recover`` does."""
        return issubclass(self.settings, TrainingSettings)

    def load_score(self) -> Score:
        """Import and return the function that ranks a layer's weights."""
        return resolve_name(self.score)

    def load_solve(self) -> Solve:
        """Import and return the function that prunes and updates layers that read the same inputs."""
        return resolve_name(self.solve)


_FILES = "sparsebench.steps.prune.methods"
BUILT_IN = (
    Method(
        "random", score=f"{_FILES}.scores:random_scores", granularities=("layer", "global", "row"), version=2,
        summary="removes weights chosen uniformly at random: the floor that any method must beat",
    ),
    Method(
        "magnitude", score=f"{_FILES}.scores:magnitude_scores", granularities=("layer", "global", "row"), settings=Magnitude,
        summary="removes the weights of smallest absolute value",
        paper="Han et al. 2015, Learning both Weights and Connections, arXiv:1506.02626",
    ),
    Method(
        "wanda", score=f"{_FILES}.scores:wanda_scores", needs="squares", granularities=("row", "layer"),
        summary="removes the weights of smallest |w|·‖x‖: magnitude times the norm of what the weight is multiplied with",
        paper="Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, arXiv:2306.11695",
    ),
    Method(
        "ria", score=f"{_FILES}.scores:ria_scores", needs="squares", granularities=("layer", "row"),
        summary="removes the weights that are smallest within their row and column together, times √‖x‖",
        paper="Zhang et al. 2024, Plug-and-Play: An Efficient Post-training Pruning Method for LLMs, ICLR 2024",
    ),
    Method(
        "sparsegpt", solve=f"{_FILES}.sparsegpt:solve", needs="gram", granularities=("layer", "row"), consumes=True,
        settings=SparseGPT,
        summary="removes weights column by column, each time adjusting those to the right to make up for the error",
        paper="Frantar & Alistarh 2023, SparseGPT, arXiv:2301.00774",
    ),
    Method(
        "alps", solve=f"{_FILES}.alps:solve", needs="gram", granularities=("layer", "row"), settings=ALPS,
        summary="searches the best support and weights of a layer together, by ADMM and conjugate gradients",
        paper="Meng et al. 2024, ALPS: Improved Optimization for Highly Sparse One-Shot Pruning, arXiv:2406.07831",
    ),
    Method(
        "mask", run=f"{_FILES}.mask:make_masked", granularities=(), settings=Mask,
        summary="removes what the masks in a file say: a 1 keeps, a 0 removes",
    ),
    Method(
        "gradual", run=f"{_FILES}.gradual:make_gradual", granularities=(), settings=Gradual,
        summary="removes weights while the whole model is trained: more and more of the smallest",
        paper="Zhu & Gupta 2017, To Prune, or Not to Prune, arXiv:1710.01878",
    ),
    Method(
        "elsa", run=f"{_FILES}.elsa:make_elsa", granularities=(), settings=Elsa,
        summary="trains the whole model on its own loss, and pulls it towards weights that are sparse, by ADMM",
        paper="Lee et al. 2025, The Unseen Frontier: Pushing the Limits of LLM Sparsity, arXiv:2510.01650",
    ),
)  # fmt: skip


@cache
def methods() -> dict[str, Method]:
    """Return every method by name: the built-in ones, then those of installed plugins."""
    return table(BUILT_IN, Method, "sparsebench.methods")


def settings() -> dict[str, type[Settings]]:
    """Return each method's settings class, by its name."""
    return {name: _settings_of(method) for name, method in methods().items()}


def _settings_of(method: Method) -> type[Settings]:
    fields = {"release": method.version, "calculates_with": method.libraries or method.settings.calculates_with}
    if issubclass(method.settings, Prune):
        fields |= {"granularities": method.granularities, "calibrated": bool(method.needs), "ranks": bool(method.score)}
    return method.settings.named(method.name, **fields)
