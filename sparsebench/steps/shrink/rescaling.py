"""What makes up for a norm that divides by another width: one factor for each norm, by which its weights are multiplied.

With y what the dense model's norm makes of a token's states before its weights, and ŷ what the norm of the channels that stay
makes of them alone, both over these channels,

    c = Σ y·ŷ / Σ ŷ·ŷ     over the calibration tokens

is the factor with which Σ ‖y - c ŷ‖² is least. Of a root mean square norm over k of H channels it is √(H/k) · E(‖x_S‖ / ‖x‖): 1
where those that stay are like the others, √(H/k) where they have all of the square, so that no rule without text gives it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.axes import Shape

if TYPE_CHECKING:
    import torch

    from sparsebench.steps.shrink.whole import Whole

_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
"""What sentence-transformers calls the hidden size beside its pooling."""


def factors(
    model: Whole,
    shape: Shape,
    norms: Sequence[str],
    stay: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """By the name of a norm's weights, its factor for the channels that ``stay``, with the dense model's states.

    Raises UnsupportedError where norms have no weights, ModelError where something is not finite.
    """
    import torch

    if not norms:
        kind = shape.checkpoint.config.get("model_type")
        raise UnsupportedError(f"compensation: rescale: the norms of {kind} have no weights", "`compensation: none`")
    index = torch.tensor(stay)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in norms}
    rows = slice(0, 0)

    def see(name: str, module: Any, args: Any) -> None:
        inside = args[0][model.mask(rows, shape.places[name].side)].double()
        dense, own = normed(module, inside)[:, index], normed(module, inside[:, index])
        sums[name] += torch.stack([(dense * own).sum(), own.square().sum()])

    hooks = [model.module(name).register_forward_pre_hook(partial(see, name)) for name in norms]
    groups = model.groups()
    try:
        for done, rows in enumerate(groups, start=1):
            with torch.no_grad():
                model.run(rows)
            if progress:
                progress(done, len(groups))
    finally:
        for hook in hooks:
            hook.remove()
    for name, (both, own) in sums.items():
        if not bool(both.isfinite()) or not float(own) > 0:
            raise ModelError(f"{name}: what it reads is NaN, infinite or nothing", "calibrate with other text")
    return {name: float(both / own) for name, (both, own) in sums.items()}


def normed(module: Any, states: torch.Tensor) -> torch.Tensor:
    """What a norm makes of states (tokens, width) before its weights."""
    import torch

    eps = getattr(module, "variance_epsilon", getattr(module, "eps", 0.0))
    # T5's own class is called LayerNorm and takes no mean.
    centred = states - states.mean(-1, keepdim=True) if isinstance(module, torch.nn.LayerNorm) else states
    return centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt()


def tell_pooling(folder: Path, width: int) -> None:
    """Write the hidden size where sentence-transformers has it as well."""
    for path in folder.glob("*/config.json"):
        said = bounded.read_object(path)
        changed = {key: width for key in _WIDTHS if key in said}
        if changed:
            path.write_text(json.dumps({**said, **changed}, indent=2))
