"""What a run shows of a model before its end: what came out, once all of its cells are done but those that are timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sparsebench.plan.cells import Cell
from sparsebench.plan.stages import timed


class ModelAnswers:
    """Counts the open cells of each model; ``answer`` gives a model's lines out of the ledger, none where it has none."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.open_cells: Counter[str] = Counter()
        self.due: list[str] = []

    def begin(self, cells: Iterable[Cell]) -> None:
        """Begin a run of ``cells``."""
        self.open_cells.update(cell.variant.model for cell in cells if not timed(cell.stage))

    def ended(self, cell: Cell) -> None:
        """Note that a cell has its record."""
        if timed(cell.stage):
            return
        self.open_cells[cell.variant.model] -= 1
        if not self.open_cells[cell.variant.model]:
            self.due.append(cell.variant.model)

    def take(self) -> Iterator[str]:
        """Yield the lines that are due, each once."""
        while self.due:
            if lines := self.answer(self.due.pop(0)):
                yield lines
