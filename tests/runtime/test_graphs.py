"""Recorded decoding, without a GPU: its steps give the eager ones' tokens, and hold nothing that a CUDA graph cannot."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsebench.models.modules.load import load_model
from sparsebench.runtime.engines.hf import PlainModel
from sparsebench.runtime.graphs import (
    GRAPH,
    WARM_STEPS,
    CapturedDecode,
    cuda_graph,
    decode_mode,
    match_decode_modes,
    with_recorded_decoding,
)
from sparsebench.runtime.workload import Decode, Phase, Prompt, phases
from tests.models.replaying import written
from tests.models.test_axes import random_everywhere

ASKS = {f"aten::{name}" for name in ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "equal", "lift_fresh")}
"""Operations that wait for a value of the GPU's, or bring it one of the CPU's: neither can be recorded."""
TOKENS = 5


class Asked(TorchDispatchMode):
    """Notes such operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found |= {func._schema.name} & ASKS
        return func(*args, **(kwargs or {}))


def made(kind: str, folder: Path) -> Callable[[], list[Phase]]:
    path, family = written(kind, folder)
    random_everywhere(path)  # else a model of random weights repeats one token
    model = PlainModel(load_model(path, family))
    ids = torch.randint(5, 20, (2, 7), generator=torch.Generator().manual_seed(0))
    return lambda: list(phases(model, family, Prompt(ids, torch.ones_like(ids)), TOKENS))


def decoding(found: list[Phase]) -> Any:
    return next(one for one in found if isinstance(one, Decode))


def tokens(phase: Any) -> list[Any]:
    """Two blocks of greedy tokens, which start at the same place."""
    found = []
    for _ in range(2):
        phase.begin()
        for _ in range(TOKENS):
            phase.step()
            found.append(phase.next_token.tolist())
    return found


def refusing(error: Exception) -> Callable[..., Callable[[], None]]:
    """A recording that breaks off after a step."""

    def record(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        step()
        raise error

    return record


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "gpt_neox", "t5", "bart"])
def test_recorded_steps_give_the_eager_tokens(kind: str, tmp_path: Path) -> None:
    new, asked, undone = made(kind, tmp_path), Asked(), [0]

    def record(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        for _ in range(2):  # as before a recording
            step()
            undo()
            undone[0] += 1

        def replay() -> None:
            with asked:
                step()

        return replay

    with torch.inference_mode():
        ours = with_recorded_decoding(new(), TOKENS, 1, record)
        expected = tokens(decoding(new()))
        assert len({str(row) for row in expected}) > 1, "a model that repeats one token shows nothing"
        assert tokens(decoding(ours)) == expected
    assert decode_mode(ours) == f"decode: {GRAPH}"
    assert undone == [2]
    assert not asked.found
    assert [one.name for one in ours] == [one.name for one in new()]


def test_what_a_recorded_step_reads_and_writes_lives_as_long_as_its_replay(tmp_path: Path) -> None:
    new = made("llama", tmp_path)

    def record(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        held = weakref.ref(step)  # a CUDA graph holds no tensor alive

        def replay() -> None:
            kept = held()
            assert kept is not None, "its tensors were freed"
            kept()

        return replay

    with torch.inference_mode():
        phase = decoding(with_recorded_decoding(new(), TOKENS, 1, record))
        assert tokens(phase) == tokens(decoding(new()))
    phase.end()
    assert phase.recorded_step is None


def test_a_recording_that_breaks_off_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = ["theirs"]

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    theirs = Stream()

    @contextmanager
    def graph(_: object) -> Iterator[None]:
        streams[:] = ["recording"]
        yield

    fakes = {
        "Stream": Stream,
        "CUDAGraph": object,
        "graph": graph,
        "stream": nullcontext,
        "current_stream": lambda: theirs,
        "set_stream": lambda stream: streams.__setitem__(0, "theirs" if stream is theirs else "another"),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    called: list[int] = []

    def step() -> None:
        called.append(0)
        if len(called) > WARM_STEPS:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph(step, lambda: None)
    assert streams == ["theirs"]


def test_parameters_that_zero_3_gathers_are_not_recorded(tmp_path: Path) -> None:
    phase = decoding(new := made("llama", tmp_path)())
    next(phase.prefill.model.module.parameters()).ds_id = 0
    assert decode_mode(with_recorded_decoding(new, TOKENS, 1)) == "decode: eager (ZeRO-3 gathers its parameters)"


def test_what_cannot_be_recorded_is_decoded_eagerly_and_says_why(tmp_path: Path) -> None:
    new = made("llama", tmp_path)

    def other(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    with torch.inference_mode():
        expected = tokens(decoding(new()))
        for record, why in (
            (
                refusing(RuntimeError("CUDA error: operation not permitted\nmore")),
                "CUDA error: operation not permitted",
            ),
            (refusing(RuntimeError()), "RuntimeError"),
            (other, "does not give the logits"),
        ):
            ours = with_recorded_decoding(new(), TOKENS, 1, record)
            assert tokens(phase := decoding(ours)) == expected
            assert phase.recorded_step is None
            assert not phase.state_after_prompt, "a cache and its copy would stay in memory"
            assert decode_mode(ours).startswith("decode: eager (not recorded: ")
            assert why in decode_mode(ours)


def test_beside_a_model_that_is_not_recorded_none_is_replayed(tmp_path: Path) -> None:
    new = made("llama", tmp_path)

    with torch.inference_mode():
        expected = tokens(decoding(new()))
        ways = (_again, refusing(RuntimeError("not here")), _again)
        dense, variant, good = (with_recorded_decoding(new(), TOKENS, 1, record) for record in ways)
        for other, how in ((variant, "decode: eager (not recorded: not here)"), (good, f"decode: {GRAPH}")):
            match_decode_modes([dense, other])
            assert [decode_mode(one) for one in (dense, other)] == [how, how]
            assert tokens(decoding(dense)) == tokens(decoding(other)) == expected


def _again(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
    return step


def test_a_replay_may_round_otherwise_but_not_be_a_token_further(tmp_path: Path) -> None:
    """As where cuBLAS chooses another algorithm for a step that is recorded."""
    new = made("llama", tmp_path)

    def rounding(phase: Any) -> Callable[..., Callable[[], None]]:
        weight = phase.prefill.model.module.lm_head.weight

        def record(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
            def replay() -> None:
                kept = weight.data.clone()
                weight.data.mul_(1 + 1e-5 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
                step()
                weight.data.copy_(kept)

            return replay

        return record

    def further(step: Callable[[], None], undo: Callable[[], None]) -> Callable[[], None]:
        return lambda: (step(), step())[0]

    with torch.inference_mode():
        expected = tokens(decoding(new()))
        found = with_recorded_decoding(phases := new(), TOKENS, 1, rounding(decoding(phases)))
        assert tokens(decoding(found)) == expected and decode_mode(found) == f"decode: {GRAPH}"
        wrong = with_recorded_decoding(new(), TOKENS, 1, further)
        assert tokens(decoding(wrong)) == expected and "does not give the logits" in decode_mode(wrong)


def test_running_out_of_memory_is_no_reason_to_decode_eagerly(tmp_path: Path) -> None:
    full = refusing(torch.OutOfMemoryError("CUDA out of memory"))
    with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
        decoding(with_recorded_decoding(made("llama", tmp_path)(), TOKENS, 1, full)).begin()


@pytest.mark.parametrize(
    ("kind", "ranks", "why"), [("llama", 2, "several ranks"), ("gemma2", 1, "slides"), ("mpt", 1, "no static cache")]
)
def test_models_that_are_not_recorded(kind: str, ranks: int, why: str, tmp_path: Path) -> None:
    phase = decoding(with_recorded_decoding(made(kind, tmp_path)(), TOKENS, ranks))
    assert isinstance(phase, CapturedDecode)
    assert why in phase.mode


def test_an_encoder_decodes_nothing(tmp_path: Path) -> None:
    assert decode_mode(with_recorded_decoding(made("bert", tmp_path)(), TOKENS, 1)) == ""
