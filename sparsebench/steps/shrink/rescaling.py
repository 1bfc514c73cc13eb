"""Correct norms that divide by another width: multiply the weights of each norm by one factor.

y is the dense norm's output for a token in the channels that stay, before the norm's weights. ŷ is the norm's output
for these channels alone. The factor

    c = Σ y·ŷ / Σ ŷ·ŷ     over the calibration tokens

minimizes Σ ‖y - c ŷ‖². For a root mean square norm over k of H channels it is √(H/k) · E(‖x_S‖ / ‖x‖): 1 where the
channels that stay are like the others, and √(H/k) where they hold all of the sum of squares. So it cannot be computed
without text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.axes import ModelShape
from sparsebench.models.hooks import hooked
from sparsebench.steps.contract import reported

if TYPE_CHECKING:
    import torch

    from sparsebench.steps.shrink.whole import WholeModel


def factors(
    model: WholeModel,
    shape: ModelShape,
    norms: Sequence[str],
    stay: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return each norm's factor for the channels that ``stay``, by the name of its weights, from the dense model's
    states.

    Raises UnsupportedError where norms have no weights, ModelError where what a norm reads is not finite or only zeros.
    """
    import torch

    if not norms:
        kind = shape.checkpoint.config.get("model_type")
        raise UnsupportedError(f"compensation: rescale: the norms of {kind} have no weights", "`compensation: none`")
    index = torch.tensor(stay)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in norms}

    def see(name: str, module: Any, args: Any) -> None:
        inside = args[0][model.mask(rows, shape.places[name].side)].double()
        dense, own = normed(module, inside)[:, index], normed(module, inside[:, index])
        sums[name] += torch.stack([(dense * own).sum(), own.square().sum()])

    hooks = [model.module(name).register_forward_pre_hook(partial(see, name)) for name in norms]
    with hooked(hooks), torch.no_grad():
        for rows in reported(model.groups(), progress):
            model.run(rows)
    for name, (both, own) in sums.items():
        if not bool(both.isfinite()) or not float(own) > 0:
            raise ModelError(f"{name}: its inputs are NaN, infinite or all zero", "calibrate with other text")
    return {name: float(both / own) for name, (both, own) in sums.items()}


def normed(module: Any, states: torch.Tensor) -> torch.Tensor:
    """Return a norm's output for states (tokens, width), before its weights."""
    import torch

    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    # T5's own class is called LayerNorm but subtracts no mean.
    centred = states - states.mean(-1, keepdim=True) if isinstance(module, torch.nn.LayerNorm) else states
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
