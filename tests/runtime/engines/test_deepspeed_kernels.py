"""When DeepSpeed is asked for its own kernels. There is no GPU here: DeepSpeed is a stand-in that says what it was asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.load import load_model
from sparsebench.runtime.engines.deepspeed import KERNELS, DeepSpeed


class Injected(nn.Module):
    """Looks like one of DeepSpeed's."""


Injected.__module__ = KERNELS + ".transformers.ds_bert"


def wrapped(
    folder: Path, family: Any, monkeypatch: pytest.MonkeyPatch, cuda: bool, puts: bool = True
) -> tuple[bool, str]:
    """Whether kernels were asked for, and what the engine says about them."""
    import deepspeed

    asked: list[bool] = []

    def init_inference(model: Any, replace_with_kernel_inject: bool, **_: Any) -> Any:
        asked.append(replace_with_kernel_inject)
        if replace_with_kernel_inject and puts:
            model.encoder.layer[0], model.encoder.layer[1] = Injected(), Injected()
        return SimpleNamespace(module=model)

    monkeypatch.setattr(deepspeed, "init_inference", init_inference)
    found = DeepSpeed()
    found.cuda = cuda
    found.wrap(load_model(folder, family), None, 8)
    return asked[0], found.kernel


def test_only_on_a_gpu_and_only_where_its_kernels_fit(
    tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wrapped(tiny_bert, "encoder", monkeypatch, cuda=False) == (False, "dense torch linear")
    assert wrapped(tiny_bert, "encoder", monkeypatch, cuda=True) == (True, "DeepSpeed kernels ×2 blocks")
    assert wrapped(tiny_llama, "decoder", monkeypatch, cuda=True) == (False, "dense torch linear")


def test_kernels_that_were_not_put_in_are_an_error(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MeasureError, match="put in none"):
        wrapped(tiny_bert, "encoder", monkeypatch, cuda=True, puts=False)


def test_want_of_memory_is_not_a_refusal(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    words = ["[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "not this model"]
    monkeypatch.setattr(deepspeed, "init_inference", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(words.pop(0))))
    with pytest.raises(RuntimeError, match="can't allocate"):
        DeepSpeed().wrap(load_model(tiny_bert, "encoder"), None, 8)
    with pytest.raises(UnsupportedError, match="refuses"):
        DeepSpeed().wrap(load_model(tiny_bert, "encoder"), None, 8)
