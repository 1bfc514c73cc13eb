"""Masks against the slow, obvious way (sort (score, position), remove the first round(s·n)); keys order like scores."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Quota
from sparsebench.steps.prune.keys import keys, ordinals, thresholds

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPARSITIES = [0.0, 0.1, 0.5, 0.9, 0.99, 1.0]


def chosen(weights: torch.Tensor, granularity: str) -> list[torch.Tensor]:
    """The masks by magnitude."""
    quotas = [Quota(sparsity, granularity, "unstructured") for sparsity in SPARSITIES]
    return [choice.mask for choice in masks.choose(weights.abs(), quotas, "w")]


def obvious(values: list[float], remove: int) -> list[bool]:
    """The reference: a Python sort by (value, position)."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    gone = set(order[:remove])
    return [place in gone for place in range(len(values))]


@contextmanager
def as_if_large(large: bool) -> Iterator[None]:
    """Treat a small matrix as a ``large`` one: its threshold is found by counting, and it is worked on in pieces."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in (("WHOLE", 0), ("CHUNK", 7)) if large else ():
            patch.setattr(masks, name, size)
        yield


@st.composite
def matrices(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = tuple(DTYPES)) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    seed, levels = draw(st.integers(0, 10_000)), draw(st.sampled_from([2, 5, 1000]))
    generator = torch.Generator().manual_seed(seed)
    # Few levels make many ties, as 4-bit and 16-bit weights do.
    drawn = torch.randint(-levels, levels + 1, (rows, columns), generator=generator) / levels
    return drawn.to(draw(st.sampled_from(dtypes)))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.booleans())
def test_layer_and_row_masks_equal_a_sort(weights: torch.Tensor, counting: bool) -> None:
    with as_if_large(counting):
        layers, rows = chosen(weights, "layer"), chosen(weights, "row")
    values = weights.abs().float()
    for sparsity, layer, row in zip(SPARSITIES, layers, rows, strict=True):
        assert layer.flatten().tolist() == obvious(values.flatten().tolist(), round(sparsity * values.numel()))
        wanted = [obvious(line, round(sparsity * len(line))) for line in values.tolist()]
        assert row.tolist() == wanted


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(["2:4", "1:4", "1:10", "12:16", "1:100"]), st.booleans())
def test_pattern_keeps_n_of_every_m(weights: torch.Tensor, pattern: str, pieces: bool) -> None:
    keep, group = map(int, pattern.split(":"))
    with as_if_large(pieces):
        mask = masks.by_pattern(keys(weights.abs(), "w"), pattern)
    whole = weights.shape[1] // group * group
    for row, values in zip(mask.tolist(), weights.abs().float().tolist(), strict=True):
        for start in range(0, whole, group):
            assert row[start : start + group] == obvious(values[start : start + group], group - keep)
        assert not any(row[whole:]), "columns beyond the last whole group must stay"


@settings(max_examples=60, deadline=None)
@given(matrices((*DTYPES, torch.float64, torch.int32)), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_blocks_go_by_the_sum_of_their_scores(weights: torch.Tensor, height: int, width: int, by_row: bool) -> None:
    scores = weights.abs() if weights.is_floating_point() else weights.abs() * 2**30
    quotas = [Quota(sparsity, "row" if by_row else "layer", f"{height}x{width}") for sparsity in SPARSITIES]
    down, across = weights.shape[0] // height, weights.shape[1] // width
    sums = [
        [
            sum(scores[y * height : (y + 1) * height, x * width : (x + 1) * width].double().flatten().tolist())
            for x in range(across)
        ]
        for y in range(down)
    ]
    for quota, choice in zip(quotas, masks.choose(scores, quotas, "w"), strict=True):
        groups = sums if by_row else [[value for row in sums for value in row]]
        gone = [flag for group in groups for flag in obvious(group, round(quota.sparsity * len(group)))]
        expected = torch.zeros(weights.shape, dtype=torch.bool)
        for place, flag in enumerate(gone):
            y, x = divmod(place, across)
            expected[y * height : (y + 1) * height, x * width : (x + 1) * width] = flag
        assert torch.equal(choice.mask, expected)
        assert bool(choice.notes) == bool(weights.shape[0] % height or weights.shape[1] % width)


@settings(max_examples=40, deadline=None)
@given(matrices((*DTYPES, torch.float64)))
def test_choose_answers_every_quota_in_its_order(weights: torch.Tensor) -> None:
    kinds = [("layer", "unstructured"), ("row", "unstructured"), ("layer", "2:4"), ("layer", "2x2"), ("row", "2x2")]
    quotas = [Quota(sparsity, *kind) for sparsity in (0.9, 0.0, 0.5, 1.0) for kind in kinds]
    together = list(masks.choose(weights.abs(), quotas, "w"))
    for quota, choice in zip(quotas, together, strict=True):
        (alone,) = masks.choose(weights.abs(), [quota], "w")
        assert torch.equal(choice.mask, alone.mask)
        assert choice.notes == alone.notes


def test_what_a_pattern_cannot_reach_is_said() -> None:
    scores = torch.rand(6, 10)
    said = {
        pattern: next(masks.choose(scores, [Quota(0.5, "layer", pattern)])).notes
        for pattern in ("unstructured", "1:5", "2:4", "1:100", "3x5", "4x5", "3x4")
    }
    assert [pattern for pattern, notes in said.items() if notes] == ["2:4", "1:100", "4x5", "3x4"]
    assert said["2:4"] == ("columns beyond the last whole group of 2:4 kept",)
    assert said["4x5"] == ("rows and columns beyond the last whole block of 4x5 kept",)


@pytest.mark.parametrize("pattern", ["4by4", "0x4", "4x", "dense", "x4", "4x4x4"])
def test_an_unknown_pattern_is_named(pattern: str) -> None:
    with pytest.raises(UnsupportedError, match=pattern):
        next(masks.choose(torch.rand(8, 8), [Quota(0.5, "layer", pattern)]))


@settings(max_examples=40, deadline=None)
@given(st.lists(matrices(), min_size=1, max_size=4), st.floats(0, 1))
def test_one_threshold_over_several_tensors(tensors: list[torch.Tensor], sparsity: float) -> None:
    scores = [keys(tensor.abs(), "w") for tensor in tensors]
    flat = [value for tensor in tensors for value in tensor.abs().float().flatten().tolist()]
    remove = masks.count(sparsity, len(flat))
    (limit,) = thresholds([scores, scores], [remove])
    below = sum(int((score < limit.key).sum()) for score in scores)
    equal = sum(int((score == limit.key).sum()) for score in scores)
    assert below + limit.ties == remove
    assert limit.ties <= equal
    assert sorted(flat)[:below] == sorted(value for value, gone in zip(flat, obvious(flat, below), strict=True) if gone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_broken_scores_are_refused_by_name(bad: float) -> None:
    wrong = [torch.tensor([[0.5, bad]], dtype=dtype) for dtype in (torch.float32, torch.float64)]
    for scores in wrong if bad != -1 else [*wrong, torch.tensor([[0, -1]], dtype=torch.int32)]:
        for quota in (Quota(0.5, *kind) for kind in (("layer",), ("row",), ("layer", "1:2"), ("layer", "1x2"))):
            with pytest.raises(ModelError, match=r"layers\.0\.q"):
                next(masks.choose(scores, [quota], "layers.0.q"))
        with pytest.raises(ModelError, match=r"layers\.0\.q"):
            keys(scores, "layers.0.q")  # of which a threshold over tensors is made: also of no double


@settings(max_examples=80, deadline=None)
@given(
    matrices((*DTYPES, torch.float64)), st.sampled_from(["unstructured", "2x3", "2:4"]), st.booleans(), st.booleans()
)
def test_kept_zeros_go_first_and_the_rest_by_share(
    before: torch.Tensor, pattern: str, by_row: bool, counting: bool
) -> None:
    """As torch's PruningContainer. The scores say nothing of the zeros: they are drawn apart."""
    scores = torch.rand(before.shape, generator=torch.Generator().manual_seed(1)).to(before.dtype)
    quotas = [Quota(share, "row" if by_row else "layer", pattern, keep_zeros=True) for share in SPARSITIES]
    plain = Quota(0.5, "layer", pattern)
    with as_if_large(counting):
        found = [choice.mask for choice in masks.choose(scores, [*quotas, plain], "w", before)]
    assert torch.equal(found.pop(), next(masks.choose(scores, [plain], "w")).mask)
    zero, (rows, columns) = before == 0, before.shape
    height, width = (2, 3) if pattern == "2x3" else (1, 4) if pattern == "2:4" else (1, 1)
    units = {
        (y, x): (slice(y, y + height), slice(x, x + width))
        for y in range(0, rows - height + 1, height)
        for x in range(0, columns - width + 1, width)
    }
    for quota, mask in zip(quotas, found, strict=True):
        expected = zero.clone()
        if pattern == "2:4":
            for unit in units.values():
                order = sorted(
                    range(4), key=lambda place, at=unit: (not zero[at][0, place], scores[at][0, place], place)
                )
                expected[unit][0, order[:2]] = True
        else:
            live = {at: unit for at, unit in units.items() if not zero[unit].all()}
            groups = [[at for at in live if at[0] == y] for y in range(0, rows, height)] if by_row else [[*live]]
            for group in groups:
                sums = {at: float(scores[live[at]].double().sum()) for at in group}
                for at in sorted(group, key=lambda at: (sums[at], at))[: round(quota.sparsity * len(group))]:
                    expected[live[at]] = True
        assert torch.equal(mask, expected)


def test_a_method_that_does_not_tell_its_weights_cannot_keep_zeros() -> None:
    with pytest.raises(UnsupportedError, match="layers.5.up"):
        next(masks.choose(torch.rand(2, 4), [Quota(0.5, "row", keep_zeros=True)], "layers.5.up"))


def test_doubles_are_ordered_finer_than_floats_are() -> None:
    scores = torch.tensor([1.0, 1.0 + 1e-12, 1e300, 0.0, 5e-324], dtype=torch.float64)
    assert torch.equal(torch.argsort(ordinals(scores, "w")), torch.argsort(scores))


def test_integers_pass_whatever_their_layout() -> None:
    scores = torch.arange(6, dtype=torch.int32).view(2, 3).T
    assert keys(scores, "w").is_contiguous()
    assert torch.equal(keys(scores, "w"), scores)
