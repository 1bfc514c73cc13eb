"""Reconstruction: one block after another is trained to give the dense model's block outputs.

Both models read the same text. The block in training reads the outputs of the recovered blocks before it, so that it
also corrects their remaining errors; its target is the dense block's output for the dense model's own states. After "A
Free Lunch in LLM Compression: Revisiting Retraining after Pruning" (2510.14444), which trains attention and MLP apart.
Only one block of each model is in memory, in float32, with its gradients and Adam's two moments. The published run
reads 128 samples of 512 tokens, at most ten times; a run on a smaller text reports its share of that. Where neurons are
grouped (``moefy``), the block in training computes the neurons that its router chooses; the router is not trained.
Every finished block is saved. A killed run continues after the last one: it runs the text through the finished blocks
again and trains the next.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from sparsebench import energy, heap
from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.building import activations_beside
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import dimensions
from sparsebench.models.files.safety import left_out_sentence
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.topology import parts, weight_tensors
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.counting import step_report, verified_zeros
from sparsebench.steps.recover.losses import relative_error
from sparsebench.steps.recover.resume import ResumeFolder, checksum, versions
from sparsebench.units import duration

PUBLISHED_TOKENS = 128 * 512
"""Tokens that the first paper named above trains on."""
PATIENCE = 2
"""Epochs in a row without a better result after which a block's training ends."""

BlockTensors = dict[str, torch.Tensor]
"""A block's parameters by their names inside it, float32."""


@dataclass(frozen=True)
class Fit:
    """The result of training one block: ``epochs`` over ``tokens``, in ``operations`` floating-point operations.

    ``before`` and ``after`` are errors on held-out text: a token's squared difference from the dense block's output
    over that output's square. Its mean over the tokens of a group of samples is averaged over groups.
    """

    side: str
    block: int
    tokens: int
    epochs: int
    operations: float
    before: float
    after: float


@dataclass
class FinishedBlocks:
    """The blocks that killed processes have finished: a file for each, with the seconds and joules spent until then.

    ``identity`` is all that decides the result: the blocks that went into it, and those before them, are added to it.
    Without a ``folder`` nothing is kept.
    """

    folder: ResumeFolder | None
    identity: dict[str, Any]
    seconds: float = 0.0
    joules: float | None = 0.0
    restored: int = 0

    def restore(self, block: Block, dense_block: Block) -> Fit | None:
        """Put the recovered tensors into ``block`` and return its fit; None where they are not kept."""
        if self.folder is None:
            return None
        blocks = checksum(self.identity.get("blocks"), *block.tensors.values(), *dense_block.tensors.values())
        self.identity["blocks"] = blocks
        saved = self.folder.read(_file_name(block), self.identity)
        if saved is None:
            return None
        device = next(iter(block.tensors.values())).device
        block.tensors = {name: tensor.to(device) for name, tensor in saved["tensors"].items()}
        self.seconds, self.joules, self.restored = saved["seconds"], saved["joules"], self.restored + 1
        return Fit(**saved["fit"])

    def save(self, block: Block, fit: Fit, seconds: float, joules: float | None) -> None:
        """Save a recovered block."""
        if self.folder is not None:
            entry = {"fit": asdict(fit), "tensors": block.tensors, "seconds": seconds, "joules": joules}
            self.folder.write(_file_name(block), self.identity, entry)


def _file_name(block: Block) -> str:
    return f"{block.stack}-{block.index}.safetensors"


@dataclass(frozen=True)
class Reconstruction:
    """The making of one recovered model: ``parent`` is trained towards ``dense`` by the settings of ``step``.

    ``number`` counts this model among the ``models_in_pass``, from 0.
    """

    dense: Checkpoint
    parent: Checkpoint
    text: Calibrated
    step: Step
    context: Context
    number: int
    models_in_pass: int

    @heap.kept_for_reuse()
    def run(self, folder: Path) -> StepReport:
        """Train the blocks, write the model to ``folder``, and count its zeros.

        Raises UnsupportedError where the models' blocks differ in number or width; ModelError where a pruned weight
        came back, or there is too little text.
        """
        started, fits = time.perf_counter(), list[Fit]()
        with (
            energy.spending(self.context.device) as spent,
            activations_beside(folder) as spill,
            CheckpointWriter(folder, list(self.parent.tensors.values()), self.parent.folder) as writer,
        ):
            family, batch = self.context.family, self.text.batch
            group = self.step.settings.batch
            dense, parent = (
                Replay(checkpoint, family, batch, 1, spill, "float32", group=group, device=self.context.device)
                for checkpoint in (self.dense, self.parent)
            )
            self._check_comparable(len(dense), len(parent))
            finished_blocks = self._finished_blocks()

            def total() -> tuple[float, float | None]:
                seconds = finished_blocks.seconds + time.perf_counter() - started
                return seconds, energy.joules_in_all(finished_blocks.joules, spent.total())

            for dense_block, block in zip(dense.walk(), parent.walk(), strict=True):
                dense_block.advance(0, {})
                fit = finished_blocks.restore(block, dense_block)
                if fit is None:
                    fit, weights = self.fit(block, dense_block)
                    block.replace(weights)
                    finished_blocks.save(block, fit, *total())
                block.advance(0, {})
                for name, tensor in block.tensors.items():
                    writer.write(name, tensor.cpu())
                fits.append(fit)
                trained = len(fits) - finished_blocks.restored
                self._report_progress(fit, len(fits), len(parent), trained, time.perf_counter() - started)
            for name in list(writer.missing):
                writer.write(name, self.parent.load(name))
            provenance = {**self.step.provenance(family, self.context.seed), **self.text.provenance()}
            writer.close({**provenance, "fits": [asdict(fit) for fit in fits]})
        seconds, joules = total()
        removed = finished_blocks.folder.notes if finished_blocks.folder else []
        report = self._report(folder, fits, [left_out_sentence(writer.left_out), *removed])
        if finished_blocks.folder:
            finished_blocks.folder.remove()
        return replace(report, seconds=seconds, joules=joules, energy_source=spent.source_of(finished_blocks.joules))

    @cached_property
    def _weights(self) -> list[dict[str, TensorInfo]]:
        """The tensors that hold parameters, of the parent and of the dense model."""
        family = self.context.family
        return [weight_tensors(checkpoint, parts(checkpoint, family)) for checkpoint in (self.parent, self.dense)]

    def _check_comparable(self, dense_blocks: int, blocks: int) -> None:
        """Raise UnsupportedError where the models differ in their numbers of blocks (the arguments) or widths."""
        if dense_blocks != blocks:
            problem = f"the model has {blocks} blocks and the dense model {dense_blocks}: blocks cannot be paired"
            raise UnsupportedError(problem, "recover models of which no block was removed")
        dense_width, width = (dimensions(checkpoint.config).hidden for checkpoint in (self.dense, self.parent))
        if dense_width != width:
            raise UnsupportedError(
                f"its states are {width} wide where the dense model's are {dense_width}: blocks cannot be compared",
                "`recover: distill`, which trains the whole model",
            )

    def _report(self, folder: Path, fits: list[Fit], notes: list[str]) -> StepReport:
        """Return the report, counted in the written files, with further ``notes``.

        Raises ModelError where a pruned weight came back.
        """
        first, last = fits[0], fits[-1]
        tokens_read = sum(fit.tokens for fit in fits) // len(fits)
        sentences = [
            f"what outputs differ by on text held out, over the dense block's: {first.before:.2g}, then {first.after:.2g}"
            f" in the first block, {last.before:.2g}, then {last.after:.2g} in the last"
        ]
        if tokens_read < PUBLISHED_TOKENS * (1 - self.step.settings.held_out):
            share_read = f"{tokens_read / PUBLISHED_TOKENS:.2g}"
            published = f"{share_read} of the published run's {PUBLISHED_TOKENS:,}"
            sentences.append(f"trained on {tokens_read:,} tokens, {published}")
        report = step_report(
            folder,
            self.context.family,
            note="; ".join(filter(None, [*sentences, *notes])),
            provenance=self.text.provenance(),
            zeros_in_parent=partial(verified_zeros, self.parent),
        )
        tokens = sum(fit.tokens * fit.epochs for fit in fits) // len(fits)
        return replace(report, trained_tokens=tokens, operations=sum(fit.operations for fit in fits))

    def _finished_blocks(self) -> FinishedBlocks:
        if self.context.resume is None:
            return FinishedBlocks(None, {})
        identity = {"step": self.step.record(), "seed": self.context.seed, "text": self.text.sha256, **versions()}
        folder = ResumeFolder(self.context.resume(self.step), self.context.note)
        return FinishedBlocks(folder, identity | {"device": self.context.device})

    def _report_progress(self, fit: Fit, done: int, blocks: int, trained: int, seconds: float) -> None:
        """Report progress over the pass: ``done`` of this model's ``blocks``, ``trained`` of them in ``seconds``."""
        if self.context.progress is None:
            return
        done, total = self.number * blocks + done, self.models_in_pass * blocks
        time_left = f", {duration(seconds / trained * (total - done))} left" if trained else ""
        self.context.progress(done, total, f"error {fit.before:.3g} → {fit.after:.3g}{time_left}")

    def fit(self, block: Block, dense: Block) -> tuple[Fit, BlockTensors]:
        """Train one block to give the ``dense`` block's outputs; return what that achieved, and the block's parameters.

        Raises ModelError where all of the text is held out.
        """
        groups = list(range(len(block.samples)))
        held_out_count = max(1, round(self.step.settings.held_out * len(groups)))
        training, held_out = groups[:-held_out_count], groups[-held_out_count:]
        if not training:
            raise ModelError(
                f"recover: all {len(self.text.batch.input_ids)} samples of text are held out: none is left to train on",
                "more `samples` under `calibration`, or a smaller `batch`",
            )
        weights = _trained_parameters(block)

        def error(number: int) -> torch.Tensor:
            rows = block.samples[number]
            return relative_error(block.forward(0, rows, weights), dense.output_states(0, rows), block.mask(rows))

        def held_out_error() -> float:
            with torch.no_grad():
                return float(sum(error(number) for number in held_out) / len(held_out))

        optimizer = torch.optim.Adam(weights.values(), lr=self.step.settings.rate)
        epochs = self.step.settings.epochs
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs * len(training))
        order = torch.Generator().manual_seed(self.context.seed + block.index)
        first_error = best_error = held_out_error()
        best_weights, epochs_done, epochs_without_gain = _copies(weights), 0, 0
        while epochs_done < epochs and epochs_without_gain < PATIENCE:
            for position in torch.randperm(len(training), generator=order, device="cpu").tolist():
                optimizer.zero_grad()
                error(training[position]).backward()
                optimizer.step()
                schedule.step()
            latest_error = held_out_error()
            epochs_without_gain = 0 if latest_error < best_error else epochs_without_gain + 1
            if latest_error < best_error:
                best_error, best_weights = latest_error, _copies(weights)
            epochs_done += 1
        counts = [int(block.mask(rows).sum()) for rows in block.samples]
        tokens, held_out_tokens = sum(counts[:-held_out_count]), sum(counts[-held_out_count:])
        operations = self._operations(block, dense, tokens, held_out_tokens, epochs_done)
        return Fit(block.stack, block.index, tokens, epochs_done, operations, first_error, best_error), best_weights

    def _operations(self, block: Block, dense: Block, tokens: int, held_out_tokens: int, epochs: int) -> float:
        """Count the operations of training a block for some ``epochs``, with all its evaluations."""
        infos, dense_infos = self._weights
        parameters = sum(info.numel for name, info in infos.items() if name in block.tensors)
        dense_parameters = sum(info.numel for name, info in dense_infos.items() if name in dense.tensors)
        # Per parameter and token, a forward pass takes 2 operations and a backward pass 4. At the end both blocks run
        # once more, to give the inputs of the next blocks.
        training_passes = 6.0 * tokens * epochs + 2.0 * held_out_tokens * (epochs + 1)
        last_passes = 2.0 * (tokens + held_out_tokens)
        return parameters * training_passes + (parameters + dense_parameters) * last_passes


def _trained_parameters(block: Block) -> BlockTensors:
    """Return copies of a block's parameters that need gradients. Zeros of matrices get none, and so stay zeros."""
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in block.weights().items()}
    for leaf in leaves.values():
        if leaf.ndim > 1:
            # Without a gradient, Adam's step is exactly 0.
            leaf.register_hook((leaf.detach() != 0).mul)
    return leaves


def _copies(weights: BlockTensors) -> BlockTensors:
    return {name: weight.detach().clone() for name, weight in weights.items()}
