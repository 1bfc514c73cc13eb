"""Batches that are halved where memory is wanting, and what fits on a GPU."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from sparsebench.benchmarks.batching import MOST_TOKENS, BatchSize, fitting_tokens, tokens_at_once
from sparsebench.errors import BenchmarkError


class Room:
    """Memory for so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.tried: list[int] = []

    def run(self, part: Sequence[int]) -> list[int]:
        self.tried.append(len(part))
        if len(part) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return [10 * row for row in part]


def test_what_does_not_fit_is_halved_and_nothing_is_lost() -> None:
    room, batch = Room(3), BatchSize(16)
    assert list(batch.each(range(20), room.run)) == [(row, 10 * row) for row in range(20)]
    assert room.tried[:4] == [16, 8, 4, 2] and set(room.tried[4:]) == {2}, "what was too much is not tried again"
    assert batch.most_rows == 2


def test_a_number_that_was_asked_for_is_kept_to_and_another_error_is_its_own() -> None:
    with pytest.raises(BenchmarkError, match="16 sequences does not fit into memory: CUDA out of memory") as caught:
        list(BatchSize(16, is_fixed=True).parts(range(20), Room(3).run))
    assert "leave `batch` out" in (caught.value.hint or "")
    with pytest.raises(BenchmarkError, match="1 sequence does not fit"):
        list(BatchSize(4).parts(range(20), Room(0).run))
    with pytest.raises(ZeroDivisionError):
        list(BatchSize(4).parts(range(3), lambda part: [1 // row for row in part]))


def test_a_gpu_takes_what_fits_and_a_cpu_what_is_fastest() -> None:
    sizes = {"model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 50000}
    config = SimpleNamespace(to_dict=lambda: sizes)
    model = SimpleNamespace(device=torch.device("cpu"), dtype=torch.bfloat16, config=config)
    assert tokens_at_once(model, 512) == 512
    least, few, more, most = (fitting_tokens(model, free, 512) for free in (2**20, 2**30, 2**32, 2**45))
    assert 512 == least <= few < more <= most == MOST_TOKENS
    config.to_dict = lambda: {"model_type": "gemma3", "text_config": sizes | {"num_hidden_layers": 2}}
    assert fitting_tokens(model, 2**30, 512) == few
