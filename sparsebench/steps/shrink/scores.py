"""Scores: how much each neuron, group of heads or expert matters.

With W the matrix that reads the elements (down, o) and x what it reads:

    l2          √Σw² over all rows and columns that would go with the element
    activation  √Σ_j ‖x_j‖²·‖W_:j‖²  over the element's columns j, as Wanda weighs single weights
    flap        Var(x_j)·‖W_:j‖², brought to mean 0 and deviation 1 in every matrix, averaged over the element's columns
                (FLAP, An et al. 2024)
    taylor      |Σ W_:j·∂L/∂W_:j| over the element's columns, summed over batches, as in TextPruner (Yang et al. 2022).
                Where widths stay even, a neuron also gets |Σ V_j:·∂L/∂V_j: + b_j·∂L/∂b_j| over the rows V that make it
                (gate and up together where it is gated). These sums equal Σ x_j·∂L/∂x_j and Σ z_j·∂L/∂z_j over the
                batch's tokens, with z what the rows give, so that no gradient of a weight is ever held
    random      drawn at random

TextPruner's loss for Taylor is the task's own: the cross-entropy of a classification head on labelled documents
(``labels: task``). It can also be that of the text's next tokens (``text``), or that of answers drawn from the model's
own outputs (``own``): tokens from its softmax or, for an encoder's hidden states, a normal deviation around them. The
cross-entropy against the model's own soft output will not do: at the unpruned model its gradient is zero everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.modules.skipping import hooked
from sparsebench.models.shape.axes import Axis, Cut, ModelShape
from sparsebench.steps.contract import Progress, reported

if TYPE_CHECKING:
    import torch

    from sparsebench.steps.shrink.whole import WholeModel

Scores = dict[Axis, "torch.Tensor"]
"""The scores of each axis's elements, (units,) float64."""
Answers = dict[int, "torch.Tensor"]
"""Tokens drawn from a model's own softmax, by the first sample of their group."""
TOKENS = 512
"""Tokens of a batch, in whole samples: gradients are summed over a batch before the absolute value is taken."""


def per_element(values: torch.Tensor, cut: Cut, units: int) -> torch.Tensor:
    """Sum ``values`` (entries along the cut's dimension,) over each element's entries: (units,) float64."""
    own = values.double()[cut.offset : cut.offset + units * cut.size]
    return own.reshape(units, cut.size).sum(1)


def norms(shape: ModelShape, axes: Iterable[Axis], progress: Progress | None = None) -> Scores:
    """Return the l2 norm of the matrices' entries that would go with each element (no 1-D tensors)."""
    import torch

    meant: dict[str, list[tuple[Axis, Cut]]] = {}
    found: Scores = {}
    for axis in axes:
        found[axis] = torch.zeros(axis.units, dtype=torch.float64)
        for cut in axis.cuts:
            if len(shape.checkpoint.tensors[cut.tensor].shape) - (cut.expert is not None) > 1:
                meant.setdefault(cut.tensor, []).append((axis, cut))
    for name, cuts in reported([*meant.items()], progress):
        tensor = _finite(shape.checkpoint.load(name), name).float().square_()
        for axis, cut in cuts:
            matrix, dim = cut.of(tensor)
            others = [one for one in range(matrix.ndim) if one != dim]
            found[axis] += per_element(matrix.sum(others, dtype=torch.float64), cut, axis.units)
    for axis in found:
        for unit, names in enumerate(axis.apart):
            for name in names:
                tensor = _finite(shape.checkpoint.load(name), name).float().square_()
                found[axis][unit] += float(tensor.sum(dtype=torch.float64)) if tensor.ndim > 1 else 0
    return {axis: scores.sqrt() for axis, scores in found.items()}


def drawn(axes: Iterable[Axis], seed: int) -> Scores:
    """Return random scores, uniform in [0, 1), for the random baseline."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {axis: torch.rand(axis.units, generator=generator, dtype=torch.float64) for axis in axes}


class ActivationScorer:
    """Scores by ``activation`` or ``flap`` from what the output matrices read, and the means that FLAP's bias needs."""

    def __init__(self, name: str, axes: Iterable[Axis]) -> None:
        import torch

        self.name = name
        self.scores: Scores = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
        self.means: dict[str, torch.Tensor] = {}
        self.unseen: list[Axis] = []

    def visit(self, block: Any) -> None:
        """Score one block of the replay."""
        read = outputs_in(self.scores, block)
        found = block.observe(0, gram=False, names=[cut.name for _, cut in read], sums=True)
        for axis, cut in read:
            inputs, weights = found[cut.name], block.matrix(cut.name)
            columns = weights.double().square().sum(0)
            if not inputs.tokens:  # no token was routed to this expert
                self.unseen.append(axis)
                self.scores[axis] += per_element(columns, cut, axis.units)
                continue
            squares = inputs.squares.double() / inputs.tokens
            mean = inputs.sums / inputs.tokens
            self.means[cut.tensor] = mean
            if self.name == "activation":
                self.scores[axis] += per_element(squares * columns, cut, axis.units)
                continue
            metric = (squares - mean.square()).clamp_(min=0) * columns
            standard = (metric - metric.mean()) / metric.std().clamp_(min=1e-30)
            self.scores[axis] += per_element(standard, cut, axis.units) / cut.size

    def result(self) -> Scores:
        """Return the scores, after the last block."""
        return {axis: own.sqrt() for axis, own in self.scores.items()} if self.name == "activation" else self.scores


class Routing:
    """Scores of experts by REAP from how the text is routed, block by block.

    The score is the mean over an expert's tokens of g·‖f(x)‖, with g the router's weight and f(x) the expert's output
    (Lasby et al. 2510.13999). Where the model weights an expert's input instead of its output (Llama 4), it is the mean
    of ‖f(gx)‖.
    """

    def __init__(self, axes: Iterable[Axis]) -> None:
        import torch

        self.places = {(axis.side, axis.layers[0]): axis for axis in axes}
        self.sums = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in self.places.values()}
        self.tokens = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in self.places.values()}

    def visit(self, block: Any) -> None:
        """Count one block of the replay."""
        from sparsebench.models.modules.experts import Experts

        axis = self.places.get((block.side, block.index))
        holders = [module for module in block.module.modules() if isinstance(module, Experts)]
        given: tuple[Any, ...] = ()
        groups = -1

        def enter(module: Any, args: tuple[Any, ...]) -> None:
            nonlocal given, groups
            given, groups = args, groups + 1

        def leave(holder: Any, number: int, module: Any, args: Any, returned: torch.Tensor) -> None:
            assert axis is not None
            inside = block.mask(block.samples[groups]).reshape(-1)[holder.tokens]
            sizes = returned.double().norm(dim=-1)
            if len(given) > 2:
                chosen, weights = (one[holder.tokens] for one in given[1:3])
                sizes = sizes * weights.masked_fill(chosen != number, 0).double().sum(-1)
            self.sums[axis][number] += float(sizes[inside].sum())
            self.tokens[axis][number] += int(inside.sum())

        handles = []
        for holder in holders if axis else []:
            handles.append(holder.register_forward_pre_hook(enter))
            for number, expert in enumerate(holder):
                handles.append(expert.register_forward_hook(partial(leave, holder, number)))
        with hooked(handles):
            block.advance(0, {})

    def result(self) -> Scores:
        """Return the scores, after the last block."""
        return {axis: self.sums[axis] / counts.clamp(min=1) for axis, counts in self.tokens.items()}


def outputs_in(axes: Iterable[Axis], block: Any) -> list[tuple[Axis, Cut]]:
    """Return the block's matrices whose input columns are elements of the axes, each with its axis."""
    return [(axis, cut) for axis in axes for cut in axis.outputs if cut.tensor in block.tensors]


def taylor(
    model: WholeModel,
    axes: list[Axis],
    labels: str,
    seed: int,
    progress: Progress | None = None,
    answers: Answers | None = None,
    even: bool = True,
) -> Scores:
    """Return TextPruner's score of every element; with ``even``, that for widths that stay even (see above).

    ``answers`` holds the tokens that an earlier model drew (``labels: own``); what is drawn here is added to it. Raises
    ModelError for gradients that are not finite.
    """
    import torch

    answers = {} if answers is None else answers

    found: Scores = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    # By matrix, one batch's sums of value times gradient: of the matrix's input, or of its output.
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str, values: torch.Tensor) -> None:
        def back(gradient: torch.Tensor) -> None:
            products = gradient.detach().double() * values.detach().double()
            sums[name] = sums.get(name, 0) + products.reshape(-1, products.shape[-1]).sum(0)

        values.register_hook(back)

    def read(name: str, module: Any, args: Any) -> Any:
        # A view of its own: other matrices may read the same tensor, and their gradients must not be counted here.
        own = args[0].view_as(args[0])
        watch(name, own)
        return (own, *args[1:])

    rows_of = {axis: _rows_of(axis) if even else [] for axis in axes}
    outputs = [cut.name for axis in axes for cut in axis.outputs]
    handles = [model.module(name).register_forward_pre_hook(partial(read, name)) for name in outputs]
    for name in dict.fromkeys(cut.name for cuts in rows_of.values() for cut in cuts):
        gave = partial(lambda name, module, args, returned: watch(name, returned), name)
        handles.append(model.module(name).register_forward_hook(gave))
    handles += [table.register_forward_hook(_with_gradients) for table in _tables(model.model)]
    generator = torch.Generator().manual_seed(seed)
    with hooked(handles):
        for rows in reported(model.groups(TOKENS), progress):
            _loss(model, rows, labels, generator, answers).backward()
            for axis in axes:
                for cut in axis.outputs:
                    # An expert to which no token of the batch is routed reads nothing.
                    if cut.name in sums:
                        found[axis] += per_element(sums[cut.name], cut, axis.units).abs()
                made = [per_element(sums[cut.name], cut, axis.units) for cut in rows_of[axis] if cut.name in sums]
                found[axis] += sum(made, torch.zeros_like(found[axis])).abs()
            sums.clear()
    for axis, scores in found.items():
        if not bool(scores.isfinite().all()):
            raise ModelError(
                f"{axis.outputs[0].tensor}: its gradients are NaN or infinite", "use `compute_dtype: float32`"
            )
    return found


def _rows_of(axis: Axis) -> list[Cut]:
    """Return the rows that make an axis's neurons (of gate and up); nothing for other kinds of axes."""
    if axis.kind != "neurons":
        return []
    return [cut for cut in axis.cuts if cut not in axis.outputs and not cut.tensor.endswith("bias")]


def _loss(model: WholeModel, rows: slice, labels: str, generator: torch.Generator, answers: Answers) -> torch.Tensor:
    """Return the mean loss over a group's tokens; draw the model's own answers only where ``answers`` lacks them."""
    import torch
    from torch.nn.functional import cross_entropy

    said = model.run(rows).float()
    if model.family == "encoder" and said.ndim == 3:
        inside = model.mask(rows, model.last)[..., None]
        deviation = torch.randn(said.shape, generator=generator)
        return (said * deviation * inside).sum() / inside.sum()
    if model.classes is not None:
        return cross_entropy(said, model.classes[rows])
    if labels == "text":
        wanted = model.next_tokens(rows)
        return cross_entropy(said[:, :-1].flatten(0, 1), wanted.flatten(), ignore_index=-100)
    flat = said.reshape(-1, said.shape[-1])
    if rows.start not in answers:
        answers[rows.start] = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator).squeeze(-1)
    wanted = answers[rows.start]
    if said.ndim == 3:
        wanted = wanted.masked_fill(~model.mask(rows, model.last).reshape(-1), -100)
    return cross_entropy(flat, wanted, ignore_index=-100)


def _with_gradients(module: Any, args: Any, returned: torch.Tensor) -> torch.Tensor:
    return returned.detach().requires_grad_(True)


def _tables(model: Any) -> list[Any]:
    """Return the modules of the token embeddings, each once."""
    sides = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    return list({id(table): table for table in (side.get_input_embeddings() for side in sides)}.values())


def _finite(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return the tensor. Raises ModelError, by name, where a value is NaN or infinite."""
    if not bool(tensor.isfinite().all()):
        raise ModelError(f"{name}: NaN or infinite values", "repair or fetch the checkpoint again")
    return tensor
