"""Every loss against the slow obvious way in numpy, token by token; and what a training reads."""

import numpy as np
import pytest
import torch

from sparsebench.steps.recover import losses
from sparsebench.steps.recover.reading import WordMasking, samples_by_step

GENERATOR = torch.Generator().manual_seed(3)
SAMPLES, HEADS, LENGTH, WIDTH = 3, 2, 5, 4
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()


def states() -> torch.Tensor:
    return torch.randn(SAMPLES, LENGTH, WIDTH, generator=GENERATOR)


def attention() -> torch.Tensor:
    return torch.randn(SAMPLES, HEADS, LENGTH, LENGTH, generator=GENERATOR).softmax(-1)


def tokens() -> list[tuple[int, int]]:
    return [(sample, place) for sample in range(SAMPLES) for place in range(LENGTH) if MASK[sample, place]]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_over_the_whole_vocabulary(temperature: float) -> None:
    student, teacher = (torch.randn(6, 11, generator=GENERATOR) for _ in range(2))
    p, q = (np.exp(one.double().numpy() / temperature) for one in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    wanted = (p * np.log(p / q)).sum(-1).mean()
    whole = losses.kl(student, *losses.likeliest(teacher, None, temperature), temperature)
    assert float(whole) == pytest.approx(wanted, rel=1e-5)
    # All tokens as the likeliest ones, in another order, are the same.
    assert float(losses.kl(student, *losses.likeliest(teacher, 11, temperature), temperature)) == pytest.approx(
        wanted, rel=1e-5
    )


def test_kl_of_the_likeliest_tokens_counts_the_others_as_one() -> None:
    student, teacher = (torch.randn(6, 11, generator=GENERATOR) for _ in range(2))
    p, q = (one.double().softmax(-1).numpy() for one in (teacher, student))
    wanted = []
    for row in range(6):
        top = np.argsort(-p[row])[:3]
        rest = [1 - p[row][top].sum(), 1 - q[row][top].sum()]
        ours, theirs = [*q[row][top], rest[1]], [*p[row][top], rest[0]]
        wanted.append(sum(t * np.log(t / o) for t, o in zip(theirs, ours, strict=True)))
    found = losses.kl(student, *losses.likeliest(teacher, 3, 1.0), 1.0)
    assert float(found) == pytest.approx(np.mean(wanted), rel=1e-4)
    assert float(losses.kl(teacher, *losses.likeliest(teacher, 3, 1.0), 1.0)) == pytest.approx(0, abs=1e-6)


def test_pieces_are_the_whole() -> None:
    """Three tokens, two at a time: the loss and the gradient in the logits' own precision."""
    drawn, teacher = (torch.randn(3, losses.PIECE // 2, generator=GENERATOR) for _ in range(2))
    ids, logs = losses.likeliest(teacher, 3, 2.0)
    for dtype, near in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        whole, pieces = (drawn.to(dtype, copy=True).requires_grad_() for _ in range(2))
        wanted = losses.kl(whole, ids, logs, 2.0)
        found = losses.in_pieces(lambda *rows: losses.kl(*rows, 2.0), pieces, ids, logs)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
        (3 * wanted).backward()
        (3 * found).backward()
        assert whole.grad is not None and pieces.grad is not None and pieces.grad.dtype == dtype
        torch.testing.assert_close(pieces.grad, whole.grad, rtol=near, atol=1e-6)
        with torch.no_grad():
            assert float(losses.in_pieces(lambda *rows: losses.kl(*rows, 2.0), drawn.to(dtype), ids, logs)) == float(
                found
            )


def test_states() -> None:
    one, other = states(), states()
    a, b = one.double().numpy(), other.double().numpy()
    pairs = [(a[place], b[place]) for place in tokens()]
    assert float(losses.hidden_mse(one, other, MASK)) == pytest.approx(
        np.mean([(x - y) ** 2 for x, y in pairs]), rel=1e-5
    )
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs]
    assert float(losses.cos(one, other, MASK)) == pytest.approx(1 - np.mean(cosines), rel=1e-5)
    shares = [((x - y) ** 2).sum() / (y**2).sum() for x, y in pairs]
    assert float(losses.relative_error(one, other, MASK)) == pytest.approx(np.mean(shares), rel=1e-5)


def test_attention() -> None:
    one, other = attention(), attention()
    a, b = one.double().numpy(), other.double().numpy()
    squares, entropies = [], []
    for sample, place in tokens():
        for head in range(HEADS):
            entropies.append(-sum(b[sample, head, place] * np.log(a[sample, head, place])))
            squares += [
                (a[sample, head, place, seen] - b[sample, head, place, seen]) ** 2
                for seen in range(LENGTH)
                if MASK[sample, seen]
            ]
    assert float(losses.attention_mse(one, other, MASK)) == pytest.approx(np.mean(squares), rel=1e-5)
    assert float(losses.attention_ce(one, other, MASK)) == pytest.approx(np.mean(entropies), rel=1e-5)


def test_flows() -> None:
    student, teacher = (states(), states()), (states(), states())
    a, b, c, d = (one.double().numpy() for one in (*student, *teacher))
    flows, grams = [], []
    for sample in range(SAMPLES):
        inside = [place for row, place in tokens() if row == sample]
        ours = sum(np.outer(a[sample, place], b[sample, place]) for place in inside) / len(inside)
        theirs = sum(np.outer(c[sample, place], d[sample, place]) for place in inside) / len(inside)
        flows.append((ours - theirs) ** 2)
        grams += [
            (a[sample, i] @ b[sample, j] / WIDTH - c[sample, i] @ d[sample, j] / WIDTH) ** 2
            for i in inside
            for j in inside
        ]
    assert float(losses.fsp(student, teacher, MASK)) == pytest.approx(np.mean(flows), rel=1e-5)
    assert float(losses.nst(student, teacher, MASK)) == pytest.approx(np.mean(grams), rel=1e-5)


def test_padding_counts_nowhere() -> None:
    noise = torch.randn(SAMPLES, LENGTH, WIDTH, generator=GENERATOR) * ~MASK[..., None] * 100
    one, other, more, last = states(), states(), states(), states()
    for loss in (losses.hidden_mse, losses.cos, losses.relative_error):
        assert loss(one + noise, other, MASK) == loss(one, other, MASK)
    for pair in (losses.fsp, losses.nst):
        assert pair((one + noise, other), (more, last), MASK) == pair((one, other), (more, last), MASK)


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
