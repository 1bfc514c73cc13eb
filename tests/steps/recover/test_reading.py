"""What a training reads: the order of its samples, and which words are masked."""

import pytest
import torch

from sparsebench.steps.recover.reading import WordMasking, samples_by_step


def test_every_sample_is_read_once_an_epoch_in_an_order_of_its_own() -> None:
    steps = samples_by_step([3, 4, 5, 6, 7], 60, 2, 1)
    flat = [place for rows in steps for place in rows]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [0, 1, 2, 3, 4]
    assert flat[:5] != flat[5:10]
    counts = [sum([3, 4, 5, 6, 7][place] for place in rows) for rows in steps]
    assert sum(counts) >= 60 > sum(counts[:-1])
    assert steps == samples_by_step([3, 4, 5, 6, 7], 60, 2, 1) != samples_by_step([3, 4, 5, 6, 7], 60, 2, 2)


def test_words_are_masked_as_bert_does() -> None:
    words = WordMasking(1, frozenset({2}), 500)
    ids, mask = torch.full((200, 50), 7), torch.ones(200, 50)
    ids[:, 0], mask[:, 40:] = 2, 0
    seen, labels = words.masked(ids, mask, 4)
    asked = labels != -100
    assert not asked[:, 0].any() and not asked[:, 40:].any()
    assert float(asked[:, 1:40].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert (labels[asked] == 7).all() and torch.equal(seen[~asked], ids[~asked])
    assert float((seen[asked] == 1).float().mean()) == pytest.approx(0.8, abs=0.04)
    assert float((seen[asked] == 7).float().mean()) == pytest.approx(0.1, abs=0.03)
    short = words.masked(torch.tensor([[2, 7, 2]]), torch.ones(1, 3), 0)[1]
    assert short.tolist() == [[-100, 7, -100]]  # never nothing
