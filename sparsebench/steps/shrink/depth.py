"""Choose which blocks go, and write the model without them.

``influence`` removes those that change the states least: BI_l = 1 - E cos(x_l, x_{l+1}) over all tokens (ShortGPT, Men
et al. 2024). ``angular`` removes the n consecutive blocks with the smallest angle arccos(cos)/π between the first one's
input and the last one's output, at each sample's last token (Gromov et al. 2024). ``sleb`` removes greedily, one at a
time, the block whose removal leaves the least loss on the text (Song et al. 2024). An encoder has no loss on text;
there it is the block whose removal leaves the outputs nearest to the dense model's. ``random``, ``first`` and ``last``
are floors.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from sparsebench.models.files.safety import left_out_sentence
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.axes import ModelShape
from sparsebench.models.shape.topology import BlockId
from sparsebench.steps import cut_model
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Emit, Step, StepProgress
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.shrink.choosing import removable_blocks
from sparsebench.steps.shrink.whole import WholeModel


def make(
    shape: ModelShape, targets: Mapping[Step, Path], context: Context, text: Calibrated | None, emit: Emit
) -> None:
    """Make every depth that is asked for of one model by one criterion; ``emit`` gets each result or error."""
    started = time.perf_counter()
    removable: dict[Step, dict[str, list[int]]] = {}
    for step in targets:
        with failing_alone(step, emit):
            removable[step] = removable_blocks(shape.blocks, step.settings, shape.architecture.pinned)
    notes: dict[Step, str] = {}
    provenance = text.provenance() if text else {}
    spill = next(iter(targets.values())).parent
    for step, removed in chosen_blocks(shape, removable, context, text, spill).items() if removable else ():
        with failing_alone(step, emit):
            smaller = cut_model.without_blocks(shape, removed)
            described = {**step.provenance(context.family, context.seed), "removed": removed, **provenance}
            writer = cut_model.write_smaller(smaller, context.family, targets[step], described)
            words = [*_kept_notes(shape, removed), smaller.loading_note, left_out_sentence(writer.left_out)]
            notes[step] = "; ".join(filter(None, words))
    seconds = time.perf_counter() - started
    for step, note in notes.items():
        with failing_alone(step, emit):
            report = step_report(
                targets[step], context.family, seconds=seconds, sweep_size=len(notes), note=note, provenance=provenance
            )
            emit(step, report)


def _kept_notes(shape: ModelShape, removed: Mapping[str, list[int]]) -> Iterator[str]:
    """Yield a note for each stack: how many blocks stay, and which went."""
    for stack, removed_blocks in removed.items():
        total, of_stack = shape.blocks[stack], f" of the {stack}" if len(shape.blocks) > 1 else ""
        yield f"{total - len(removed_blocks)} of {total} blocks{of_stack} stay, without {', '.join(map(str, removed_blocks))}"


def baseline(name: str, removable: list[int], removed: int, seed: str) -> list[int]:
    """Choose blocks without looking at the model: the ``first``, the ``last`` or random ones."""
    if name == "first":
        return removable[:removed]
    if name == "last":
        return removable[len(removable) - removed :]
    return sorted(random.Random(seed).sample(removable, removed))


def chosen_blocks(
    shape: ModelShape,
    removable: Mapping[Step, dict[str, list[int]]],
    context: Context,
    text: Calibrated | None,
    spill: Path | None = None,
) -> dict[Step, dict[str, list[int]]]:
    """Return, by step, the blocks of every stack that go, out of those in ``removable``. All steps have the same criterion.
    Hidden states that are too large for memory are kept in files under ``spill``."""
    criterion = next(iter(removable)).name
    if criterion in ("random", "first", "last"):
        return _by_stack(
            removable, lambda stack, blocks, count: baseline(criterion, blocks, count, f"{context.seed}:{stack}")
        )
    assert text is not None, "the criterion reads text"
    if criterion in ("influence", "angular"):
        replay = Replay(shape.checkpoint, context.family, text.batch, spill=spill, dtype=context.dtype)
    if criterion == "influence":
        scores = influences(replay, context.progress)
        return _by_stack(removable, lambda stack, blocks, count: lowest(scores[stack], blocks, count))
    if criterion == "angular":
        states = states_of_last_tokens(replay, context.progress)
        return _by_stack(removable, lambda stack, blocks, count: nearest_run(states[stack], blocks, count))
    model = WholeModel.load(shape.checkpoint.folder, context.family, text.batch, context.dtype)
    removed: dict[Step, dict[str, list[int]]] = {}
    for stacks in dict.fromkeys(step.settings.stacks for step in removable):
        same_stacks = [step for step in removable if step.settings.stacks == stacks]
        max_blocks = max(step.settings.blocks for step in same_stacks)
        order = greedy(model, removable[same_stacks[0]], max_blocks, context.progress)
        for step in same_stacks:
            removed[step] = {stack: sorted(blocks[: step.settings.blocks]) for stack, blocks in order.items()}
    return removed


def _by_stack(
    removable: Mapping[Step, dict[str, list[int]]], choose: Callable[[str, list[int], int], list[int]]
) -> dict[Step, dict[str, list[int]]]:
    """Return what ``choose`` says for each step and stack, from the stack, its free blocks and how many of them go."""
    return {
        step: {stack: choose(stack, blocks, step.settings.blocks) for stack, blocks in by_stack.items()}
        for step, by_stack in removable.items()
    }


def influences(replay: Replay, progress: StepProgress | None = None) -> dict[str, list[float]]:
    """Return the block influence (BI) of every block, by stack."""
    scores: dict[str, list[float]] = {}

    def visit(block: Block) -> None:
        block.advance(0, {})
        total, tokens = 0.0, 0
        for rows in block.samples:
            mask = block.mask(rows)
            before, after = block.input_states(0, rows).float(), block.output_states(0, rows).float()
            cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1)
            total += float(cosines[mask].sum(dtype=torch.float64))
            tokens += int(mask.sum())
        scores.setdefault(block.stack, []).append(1 - total / max(1, tokens))

    replay.run(visit, progress)
    return scores


def states_of_last_tokens(replay: Replay, progress: StepProgress | None = None) -> dict[str, torch.Tensor]:
    """Return, by stack, what each block reads at every sample's last token, then what the last block returns there:
    (blocks + 1, samples, width)."""
    states_by_stack: dict[str, list[torch.Tensor]] = {}

    def visit(block: Block) -> None:
        block.advance(0, {})
        states = states_by_stack.setdefault(block.stack, [])
        for read in [block.output_states] if states else [block.input_states, block.output_states]:
            states.append(torch.cat([last(read(0, rows), block.mask(rows)) for rows in block.samples]))

    def last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
        return states[torch.arange(len(positions)), positions].float()

    replay.run(visit, progress)
    return {stack: torch.stack(states) for stack, states in states_by_stack.items()}


def nearest_run(states: torch.Tensor, removable: list[int], removed: int) -> list[int]:
    """Return the ``removed`` consecutive blocks across which the states (blocks + 1, samples, width) turn least."""

    def angle(start: int) -> float:
        cosines = torch.nn.functional.cosine_similarity(
            states[start].double(), states[start + removed].double(), dim=-1
        )
        return float(cosines.clamp(-1, 1).arccos().mean()) / math.pi

    starts = range(removable[0], removable[-1] + 2 - removed)
    first = min(starts, key=angle)
    return list(range(first, first + removed))


def greedy(
    model: WholeModel, removable: Mapping[str, list[int]], removed: int, progress: StepProgress | None = None
) -> dict[str, list[int]]:
    """Return, by stack, the ``removed`` blocks that go, in the order in which they go.

    A round removes one block of every stack in ``removable``: the one whose removal leaves the least loss.
    """
    removed_blocks: list[BlockId] = []
    total = sum(max(0, len(blocks) - number) for blocks in removable.values() for number in range(removed))
    done = 0
    for _ in range(removed):
        for stack, blocks in removable.items():
            trials = [(stack, index) for index in blocks if (stack, index) not in removed_blocks]
            report_trials = partial(_report_trials, progress, done, len(trials), total) if progress else None
            losses = model.losses(removed_blocks, trials, report_trials)
            done += len(trials)
            removed_blocks.append(min(trials, key=lambda block: losses[block]))
    return {stack: [index for block_stack, index in removed_blocks if block_stack == stack] for stack in removable}


def _report_trials(progress: StepProgress, done: int, trials: int, total: int, part: int, parts: int) -> None:
    """Report that ``part`` of ``parts`` of a round's trials are done, after the ``done`` trials of earlier rounds."""
    progress(done + trials * part // parts, total)


def lowest(scores: Sequence[float], removable: list[int], removed: int) -> list[int]:
    """Return the ``removed`` blocks of ``removable`` with the lowest scores; of equal ones, the first."""
    return sorted(sorted(removable, key=lambda index: scores[index])[:removed])
