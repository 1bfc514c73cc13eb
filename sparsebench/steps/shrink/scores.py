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
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sparsebench.models.modules.experts import Experts
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.shape.axes import Axis, Cut, ModelShape
from sparsebench.steps.contract import StepProgress, reported
from sparsebench.steps.finite import check_finite
from sparsebench.steps.shrink.whole import WholeModel

Scores = dict[Axis, "torch.Tensor"]
"""The scores of each axis's elements, (units,) float64."""
Answers = dict[int, "torch.Tensor"]
"""Tokens drawn from a model's own softmax, by the first sample of their group."""
TOKENS = 512
"""Tokens of a batch, in whole samples: gradients are summed over a batch before the absolute value is taken."""


def per_element(values: torch.Tensor, cut: Cut, units: int) -> torch.Tensor:
    """Sum ``values`` (entries along the cut's dimension,) over each element's entries: (units,) float64."""
    entries = values.double()[cut.offset : cut.offset + units * cut.size]
    return entries.reshape(units, cut.size).sum(1)


def l2_scores(shape: ModelShape, axes: Iterable[Axis], progress: StepProgress | None = None) -> Scores:
    """Return the l2 norm of the matrices' entries that would go with each element (no 1-D tensors)."""
    cuts: dict[str, list[tuple[Axis, Cut]]] = {}
    squares: Scores = {}
    for axis in axes:
        squares[axis] = torch.zeros(axis.units, dtype=torch.float64)
        for cut in axis.cuts:
            if len(shape.checkpoint.tensors[cut.tensor].shape) - (cut.expert is not None) > 1:
                cuts.setdefault(cut.tensor, []).append((axis, cut))
    for name, tensor_cuts in reported([*cuts.items()], progress):
        tensor = _squared_entries(shape, name)
        for axis, cut in tensor_cuts:
            matrix, dim = cut.part_of(tensor)
            other_dims = [other_dim for other_dim in range(matrix.ndim) if other_dim != dim]
            squares[axis] += per_element(matrix.sum(other_dims, dtype=torch.float64), cut, axis.units)
    for axis in squares:
        for unit, names in enumerate(axis.expert_tensors):
            for name in names:
                tensor = _squared_entries(shape, name)
                squares[axis][unit] += float(tensor.sum(dtype=torch.float64)) if tensor.ndim > 1 else 0
    return {axis: sums.sqrt() for axis, sums in squares.items()}


def _squared_entries(shape: ModelShape, name: str) -> torch.Tensor:
    """Load a tensor and square its entries, float32. Raises ModelError, by name, where one is NaN or infinite."""
    tensor = shape.checkpoint.load(name)
    check_finite(tensor, name)
    return tensor.float().square_()


def random_scores(axes: Iterable[Axis], seed: int) -> Scores:
    """Return random scores, uniform in [0, 1), for the random baseline."""
    generator = torch.Generator().manual_seed(seed)
    return {axis: torch.rand(axis.units, generator=generator, dtype=torch.float64) for axis in axes}


class ActivationScorer:
    """Scores by ``activation`` or ``flap`` from what the output matrices read, and the means that FLAP's bias needs."""

    def __init__(self, name: str, axes: Iterable[Axis]) -> None:
        self.name = name
        self.scores: Scores = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
        self.means: dict[str, torch.Tensor] = {}
        self.unseen: list[Axis] = []

    def visit(self, block: Any) -> None:
        """Score one block of the replay."""
        outputs = output_cuts(self.scores, block)
        observed = block.observe(0, gram=False, names=[cut.name for _, cut in outputs], sums=True)
        for axis, cut in outputs:
            inputs, weights = observed[cut.name], block.matrix(cut.name)
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
        if self.name != "activation":
            return self.scores
        return {axis: sums.sqrt() for axis, sums in self.scores.items()}


class ReapScorer:
    """Scores of experts by REAP from how the text is routed, block by block.

    The score is the mean over an expert's tokens of g·‖f(x)‖, with g the router's weight and f(x) the expert's output
    (Lasby et al. 2510.13999). Where the model weights an expert's input instead of its output (Llama 4), it is the mean
    of ‖f(gx)‖.
    """

    def __init__(self, axes: Iterable[Axis]) -> None:
        self.axes = {(axis.stack, axis.layers[0]): axis for axis in axes}
        self.sums = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in self.axes.values()}
        self.tokens = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in self.axes.values()}

    def visit(self, block: Any) -> None:
        """Count one block of the replay."""
        axis = self.axes.get((block.stack, block.index))
        experts_modules = [module for module in block.module.modules() if isinstance(module, Experts)]
        routed_args: tuple[Any, ...] = ()
        group = -1

        def enter(module: Any, args: tuple[Any, ...]) -> None:
            nonlocal routed_args, group
            routed_args = args
            group += 1

        def leave(experts: Any, number: int, module: Any, args: Any, outputs: torch.Tensor) -> None:
            assert axis is not None
            is_token = block.mask(block.samples[group]).reshape(-1)[experts.tokens]
            sizes = outputs.double().norm(dim=-1)
            if len(routed_args) > 2:
                chosen, weights = (tensor[experts.tokens] for tensor in routed_args[1:3])
                sizes = sizes * weights.masked_fill(chosen != number, 0).double().sum(-1)
            self.sums[axis][number] += float(sizes[is_token].sum())
            self.tokens[axis][number] += int(is_token.sum())

        handles = []
        for experts in experts_modules if axis else []:
            handles.append(experts.register_forward_pre_hook(enter))
            for number, expert in enumerate(experts):
                handles.append(expert.register_forward_hook(partial(leave, experts, number)))
        with removing_hooks(handles):
            block.advance(0, {})

    def result(self) -> Scores:
        """Return the scores, after the last block."""
        return {axis: self.sums[axis] / counts.clamp(min=1) for axis, counts in self.tokens.items()}


def output_cuts(axes: Iterable[Axis], block: Any) -> list[tuple[Axis, Cut]]:
    """Return the block's matrices whose input columns are elements of the axes, each with its axis."""
    return [(axis, cut) for axis in axes for cut in axis.outputs if cut.tensor in block.tensors]


def taylor(
    model: WholeModel,
    axes: list[Axis],
    labels: str,
    seed: int,
    progress: StepProgress | None = None,
    answers: Answers | None = None,
    even: bool = True,
) -> Scores:
    """Return TextPruner's score of every element; with ``even``, that for widths that stay even (see above).

    ``answers`` holds the tokens that an earlier model drew (``labels: own``); what is drawn here is added to it. Raises
    ModelError for gradients that are not finite.
    """
    answers = {} if answers is None else answers
    scores: Scores = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    rows_of = {axis: _neuron_rows(axis) if even else [] for axis in axes}
    products = _GradientProducts()
    handles = []
    for axis in axes:
        for cut in axis.outputs:
            handles.append(model.module(cut.name).register_forward_pre_hook(partial(products.watch_input, cut.name)))
    for name in dict.fromkeys(cut.name for cuts in rows_of.values() for cut in cuts):
        handles.append(model.module(name).register_forward_hook(partial(products.watch_output, name)))
    for table in _embedding_modules(model.model):
        handles.append(table.register_forward_hook(lambda module, args, states: states.detach().requires_grad_(True)))
    generator = torch.Generator().manual_seed(seed)
    with removing_hooks(handles):
        for rows in reported(model.groups(TOKENS), progress):
            _group_loss(model, rows, labels, generator, answers).backward()
            for axis in axes:
                for output in products.of(axis.outputs, axis.units):
                    scores[axis] += output.abs()
                scores[axis] += sum(products.of(rows_of[axis], axis.units), torch.zeros_like(scores[axis])).abs()
            products.sums.clear()
    for axis, sums in scores.items():
        check_finite(sums, axis.outputs[0].tensor, "its gradients are NaN or infinite", "use `compute_dtype: float32`")
    return scores


class _GradientProducts:
    """One batch's sums of value times gradient, by matrix: of the matrix's input, or of its output."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def watch_input(self, name: str, module: Any, args: Any) -> Any:
        # A view of its own: other matrices may read the same tensor, and their gradients must not be counted here.
        inputs = args[0].view_as(args[0])
        self._watch(name, inputs)
        return (inputs, *args[1:])

    def watch_output(self, name: str, module: Any, args: Any, outputs: torch.Tensor) -> None:
        self._watch(name, outputs)

    def _watch(self, name: str, values: torch.Tensor) -> None:
        def on_gradient(gradient: torch.Tensor) -> None:
            products = gradient.detach().double() * values.detach().double()
            self.sums[name] = self.sums.get(name, 0) + products.reshape(-1, products.shape[-1]).sum(0)

        values.register_hook(on_gradient)

    def of(self, cuts: Iterable[Cut], units: int) -> list[torch.Tensor]:
        """Return the sums over each element's entries, (units,), by cut; an expert that no token reached has none."""
        return [per_element(self.sums[cut.name], cut, units) for cut in cuts if cut.name in self.sums]


def _neuron_rows(axis: Axis) -> list[Cut]:
    """Return the rows that make an axis's neurons (of gate and up); nothing for other kinds of axes."""
    if axis.kind != "neurons":
        return []
    return [cut for cut in axis.cuts if cut not in axis.outputs and not cut.tensor.endswith("bias")]


def _group_loss(
    model: WholeModel, rows: slice, labels: str, generator: torch.Generator, answers: Answers
) -> torch.Tensor:
    """Return the mean loss over a group's tokens; draw the model's own answers only where ``answers`` lacks them."""
    outputs = model.run(rows).float()
    if model.family == "encoder" and outputs.ndim == 3:
        mask = model.mask(rows, model.output_stack)[..., None]
        deviation = torch.randn(outputs.shape, generator=generator)
        return (outputs * deviation * mask).sum() / mask.sum()
    if model.classes is not None:
        return cross_entropy(outputs, model.classes[rows])
    if labels == "text":
        targets = model.next_tokens(rows)
        return cross_entropy(outputs[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)
    flat = outputs.reshape(-1, outputs.shape[-1])
    if rows.start not in answers:
        answers[rows.start] = torch.multinomial(flat.detach().softmax(-1), 1, generator=generator).squeeze(-1)
    targets = answers[rows.start]
    if outputs.ndim == 3:
        targets = targets.masked_fill(~model.mask(rows, model.output_stack).reshape(-1), -100)
    return cross_entropy(flat, targets, ignore_index=-100)


def _embedding_modules(model: Any) -> list[Any]:
    """Return the modules of the token embeddings, each once."""
    stacks = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model]
    return list({id(table): table for table in (stack.get_input_embeddings() for stack in stacks)}.values())
