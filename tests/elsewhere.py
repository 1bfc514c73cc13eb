"""A device that is not the default one, without hardware: its tensors are a CPU's in disguise.

As on a GPU, they do not mix with the CPU's, numpy cannot read them, and what is made on no stated device is not there. Unlike
torch's meta tensors they have values, so that whole stages run, and must give what they give on the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "there"
"""What torch is told to call the kind of device that is left to others."""
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::index_put_", "aten::set_", "aten::lift_fresh")
"""Operations that take tensors of two devices, as on a GPU."""


class There(torch.Tensor):
    """A tensor of the other device; ``inner`` holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(DEVICE), requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"There({self.inner!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def tolist(self) -> Any:
        return self.inner.tolist()

    def new_tensor(self, data: Any, **_: Any) -> torch.Tensor:
        return _PLAIN(data, dtype=self.dtype).to(self.device)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_PLAIN = torch.tensor


def _tensor(data: Any, *, device: Any = None, **ways: Any) -> torch.Tensor:
    """What torch makes of Python's numbers, past every mode, made on the CPU and moved."""
    found = _PLAIN(data, **ways)
    return found if device is None else found.to(device)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    if name == "aten::_fused_sdp_choice":
        return 0  # the plain way: others are for hardware that is known
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    theirs = [one for one in tensors if isinstance(one, There)]
    ours = [one for one in tensors if not isinstance(one, There) and one.ndim and not one.is_meta]
    if theirs and ours and name not in _COPIES:
        raise RuntimeError(f"{name}: tensors on two devices, {[tuple(one.shape) for one in ours]} on the CPU")
    device = kwargs.get("device")
    asked = None if device is None else torch.device(device).type
    if asked == DEVICE:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain = tree_map(lambda one: one.inner if isinstance(one, There) else one, (args, kwargs))
    found = func(*plain[0], **plain[1])
    if asked == DEVICE and name == "aten::_to_copy" and not theirs:
        found = found.clone()  # a CPU's tensor that is moved to the CPU would be itself
    if written := [given for told, given in _given(func, args, kwargs) if told.alias_info and told.alias_info.is_write]:
        return written[0] if len(written) == 1 else found
    if asked == DEVICE or (theirs and asked is None):
        return tree_map(lambda one: There(one) if isinstance(one, torch.Tensor) else one, found)
    return found


def _given(func: Any, args: Any, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Each parameter of an operation with what it was given."""
    told = func._schema.arguments
    yield from zip(told, args, strict=False)
    yield from ((one, kwargs[one.name]) for one in told if one.name in kwargs)


@cache
def _known() -> None:
    """torch learns of the device, once in a process."""

    class Module(_DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    _setup_privateuseone_for_python_backend(DEVICE, Module())


@contextmanager
def elsewhere() -> Iterator[str]:
    """While this lasts there is another device, of the name that is yielded."""
    _known()
    kept = torch.tensor, torch.inference_mode
    # Views of tensors in disguise cannot be taken in inference mode; without gradients the numbers are the same.
    torch.tensor, torch.inference_mode = _tensor, torch.no_grad
    try:
        # Gradients on this thread: torch counts the devices that have threads of their own when it first computes any.
        with _Mode(), torch.autograd.set_multithreading_enabled(False):
            yield DEVICE
    finally:
        torch.tensor, torch.inference_mode = kept
