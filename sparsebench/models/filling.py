"""Filling an empty model from a checkpoint: blocks' tensors are found by name, the others read before any block runs.

Tensors outside the blocks (embeddings, norms, position tables) are read here, large tables as mappings of their file.
Buffers that no checkpoint holds get the values that transformers itself gives them.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models import topology
from sparsebench.models.checkpoint import Checkpoint, TensorInfo, torch_dtype
from sparsebench.models.gather import PrunableLayer
from sparsebench.models.spellings import spellings
from sparsebench.models.topology import EXPERT_LAYERS, LOOKS_AT_WEIGHTS, View

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family
    from sparsebench.models.blocks import Skeleton, SkeletonBlock
    from sparsebench.models.experts import Experts

MAPPED = 16 << 20
"""Bytes from which a tensor outside the blocks is mapped, not read: only some rows of a vocabulary's table are used."""

UNSET = "no file has this buffer, and transformers does not initialize it"
UNLOADED = "transformers sets this tensor only in its own loader, so the model cannot be loaded tensor by tensor"


def fill(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """Find every block's tensors in the checkpoint by name, and read the tensors outside the blocks.

    Raises ModelError for a tensor that is missing or has another shape, and for a prunable one that the model does not
    have. Raises UnsupportedError for a prunable tensor that belongs to no linear layer, and for state that transformers
    does not set.
    """
    from sparsebench.models.experts import take_apart

    model = skeleton.model
    take_apart(model, checkpoint.tensors)
    names = stored_views(model, checkpoint.tensors)
    places = {place.path: place for stack in skeleton.stacks for place in stack.places}
    make_buffers(model, names)
    outside: dict[str, str] = {}
    for name, tensor in named_tensors(model):
        place = next((places[path] for path in _prefixes(name) if path in places), None)
        runs = place is not None or any(name.startswith(stack.prefix) for stack in skeleton.stacks)
        if runs and name in names:
            check_shape(name, tensor, names[name], checkpoint.tensors)
        elif runs and tensor.is_meta and _is_parameter(model, name):
            raise ModelError(f"{checkpoint.folder}: {name} is missing", "the files are incomplete")
        if name not in names or not runs:
            continue
        if place is None:
            outside[name] = names[name].tensor
        else:
            inner = name.removeprefix(place.path + ".")
            place.parameters[inner] = names[name]
            place.dtypes[inner] = run_dtype(model, name, tensor)
    _inventory(skeleton, checkpoint, family)
    _read_outside(model, outside, checkpoint)
    _check_ready(skeleton)


def _prefixes(name: str) -> Iterator[str]:
    steps = name.split(".")
    return (".".join(steps[:length]) for length in range(1, len(steps)))


def named_tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters, tied ones under each of their names, and the persistent buffers."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    saved = model.state_dict()
    return parameters + [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _is_parameter(model: PreTrainedModel, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in model.get_submodule(owner)._parameters


def stored_views(model: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> dict[str, View]:
    """Return where the checkpoint has each tensor of the model (fused experts taken apart); absent ones are left out.

    Some checkpoints have older names and forms, which transformers converts on loading. For a tied tensor the checkpoint
    may use any of its names.
    """
    aliases: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        aliases.setdefault(id(tensor), []).append(name)

    def match(tied: Collection[str], names: Collection[str]) -> str | None:
        forms = (form for name in tied for form in spellings(model, name))
        return next((form for form in forms if form in names), None)

    found: dict[str, View] = {}
    for tied in aliases.values():
        if form := match(tied, stored):
            found |= dict.fromkeys(tied, View(form))
    if all(name in found for tied in aliases.values() for name in tied):
        return found
    used = {view.tensor for view in found.values()}
    forms = _converted(model, [info for info in stored.values() if info.name not in used])
    for tied in aliases.values():
        if tied[0] not in found and (form := match(tied, forms)):
            found |= dict.fromkeys(tied, forms[form])
    return found


def _converted(model: PreTrainedModel, stored: Collection[TensorInfo]) -> dict[str, View]:
    """Return views of stored tensors by the model's names for them, following transformers' own table of conversions.

    It covers renamed tensors, fused matrices that the model holds apart (rows of one tensor) and experts (slices of
    one).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, apply_renamings

    from sparsebench.models.experts import Experts

    rules: list[Any] = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    # The rules of exactly one operation, a split along the first dimension.
    chunks = [rule for rule in rules if [vars(one) for one in _operations(rule, Chunk)] == [vars(Chunk(0))]]
    turned = {path: bool(module.turned) for path, module in model.named_modules() if isinstance(module, Experts)}
    found: dict[str, View] = {}
    for info in stored:
        name = apply_renamings(info.name, renamings)
        found[name] = View(info.name)
        for rule in chunks:
            first, pattern = rule.rename_source_key(name)
            if pattern:
                height = info.shape[0] // len(rule.target_patterns)
                for place, target in enumerate(rule.target_patterns):
                    rows = (place * height, (place + 1) * height)
                    found[first.replace(rule.target_patterns[0], target)] = View(info.name, rows=rows)
        found |= _of_experts(name, info, turned)
    return found


def _operations(rule: Any, kind: type) -> list[Any]:
    """Return a conversion's operations if all are of ``kind``, else none."""
    found = getattr(rule, "operations", [])
    return found if all(type(one) is kind for one in found) else []


def _of_experts(name: str, info: TensorInfo, turned: Mapping[str, bool]) -> dict[str, View]:
    """Return by its name in the model the layer of one expert, or from a fused tensor that layer of every expert."""
    path, _, rest = name.rpartition("experts.")
    path += "experts"
    number, _, layer = rest.partition(".")
    if number.isdigit():
        layer, _, kind = layer.partition(".")
        return {f"{path}.{number}.{EXPERT_LAYERS.get(layer, layer)}.{kind}": View(info.name)}
    if path not in turned:
        return {}
    layer, kind = (rest.removesuffix("_bias"), "bias") if rest.endswith("_bias") else (rest, "weight")
    across = turned[path] and kind == "weight"
    return {f"{path}.{one}.{layer}.{kind}": View(info.name, one, across) for one in range(info.shape[0])}


def check_shape(name: str, tensor: torch.Tensor, view: View, stored: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError where a view of a stored tensor has another shape than the model's tensor."""
    import torch

    info = stored[view.tensor]
    found = view.shaped(view.cut(torch.empty(info.shape, device="meta"))).shape
    if tuple(found) != tuple(tensor.shape):
        shapes = f"{tuple(found)} where the model's {name} is {tuple(tensor.shape)}"
        raise ModelError(f"{view.name}: the file has {shapes}", "check config")


def run_dtype(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype that transformers runs a tensor in: its own, or float32 in modules that it keeps in float32."""
    import torch

    kept: set[str] = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if tensor.dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    halves = (torch.float16, torch.bfloat16)
    return torch.float32 if tensor.dtype in halves and kept & set(name.split(".")) else tensor.dtype


def _inventory(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """Note for each block all of its tensors in the checkpoint, and the linear layers that hold the prunable ones."""
    import torch
    from transformers.pytorch_utils import Conv1D

    parts = topology.parts(checkpoint, family)
    claimed: dict[str, tuple[SkeletonBlock, str]] = {}
    for stack in skeleton.stacks:
        for place in stack.places:
            for inner, view in place.parameters.items():
                # Several layers may be rows of one stored tensor. They read the same input, so the first one counts.
                claimed.setdefault(view.name, (place, inner.rpartition(".")[0]))
    for part in parts.values():
        for view in part.views:
            if view.name not in claimed:
                raise ModelError(f"{view.name}: the model has no such layer", "the config is not the checkpoint's")
            place, path = claimed[view.name]
            module = place.module.get_submodule(path)
            if not isinstance(module, (torch.nn.Linear, Conv1D)):
                kind = type(module).__name__
                raise UnsupportedError(f"{view.name}: it belongs to {kind}, which is no linear layer", LOOKS_AT_WEIGHTS)
            width = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            cross = part.kind in ("cross_k", "cross_v")
            place.prunable[view.name] = PrunableLayer(view.name, module, width, cross, view, *_routed(place, path))
    for stack in skeleton.stacks:
        for place in stack.places:
            where = (place.side, place.index)
            place.tensors = tuple(name for name, part in parts.items() if (part.side, part.layer) == where)


def _routed(place: SkeletonBlock, path: str) -> tuple[Experts | None, str]:
    """Return the experts that a layer belongs to, and a key shared by an expert's layers with the same input."""
    from sparsebench.models.experts import DOWN, Experts

    outer, _, name = path.rpartition(".")
    owner = place.module.get_submodule(outer.rpartition(".")[0]) if outer else None
    if not isinstance(owner, Experts):
        return None, ""
    return owner, f"{outer}.{'out' if name == DOWN else 'in'}"


def make_buffers(model: PreTrainedModel, found: Collection[str]) -> None:
    """Give all buffers storage and the values that transformers sets (rotary frequencies, position ids).

    Parameters that transformers never saves are treated alike, unless they are among the names ``found`` in a file.
    """
    import torch

    unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ()) - set(found)
    for name, parameter in list(model.named_parameters()):
        if name in unsaved:
            owner, _, attribute = name.rpartition(".")
            empty = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype, device="cpu")
            model.get_submodule(owner)._parameters[attribute] = torch.nn.Parameter(empty, requires_grad=False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            empty = torch.full(buffer.shape, _sentinel(buffer.dtype), dtype=buffer.dtype, device="cpu")
            module.register_buffer(name, empty, persistent=persistent)
    model.initialize_weights()  # has no effect on parameters without storage


def _sentinel(dtype: torch.dtype) -> Any:
    """Return a value that marks an entry as not yet written."""
    import torch

    if dtype.is_floating_point:
        return torch.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _read_outside(model: PreTrainedModel, names: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Read the tensors outside the blocks into the model, a tied one once."""
    import torch

    read: dict[str, torch.nn.Parameter] = {}
    for name, stored in names.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if stored not in read:
            tensor = _mapped(checkpoint, checkpoint.tensors[stored])
            dtype = run_dtype(model, name, getattr(module, attribute))
            read[stored] = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
        if attribute in module._parameters:
            module._parameters[attribute] = read[stored]
        else:
            module._buffers[attribute] = read[stored].data


def _mapped(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """Load one tensor; a large one as a mapping of its file, whose pages are read on access and can be dropped."""
    import torch

    dtype = torch_dtype(info.dtype)
    if info.nbytes < MAPPED or info.begin % dtype.itemsize:
        return checkpoint.load(info.name)
    with (checkpoint.folder / info.file).open("rb") as file:
        # A private, writable mapping because torch has no read-only tensors; nobody writes to it.
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, count=info.numel, offset=info.begin).view(info.shape)


def move(model: PreTrainedModel, device: str) -> None:
    """Move all tensors with storage to ``device``: parameters, buffers, plain attributes. Tied ones stay tied."""
    import torch

    moved: dict[int, torch.Tensor] = {}

    def there(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_meta or tensor.device == torch.device(device):
            return tensor
        if id(tensor) not in moved:
            found = tensor.to(device)
            parameter = isinstance(tensor, torch.nn.Parameter)
            moved[id(tensor)] = torch.nn.Parameter(found, requires_grad=False) if parameter else found
        return moved[id(tensor)]

    for module in model.modules():
        every: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for kept in every:
            for name, value in kept.items():
                if isinstance(value, torch.Tensor):
                    kept[name] = there(value)


def _check_ready(skeleton: Skeleton) -> None:
    """Raise UnsupportedError for a buffer that transformers left unset, or a tensor attribute without storage."""
    for stack in skeleton.stacks:
        for path, module in stack.module.named_modules():
            check_set(f"{stack.side} {path}", module)


def check_set(path: str, module: torch.nn.Module, apart: str = "") -> None:
    """Raise UnsupportedError for a buffer of ``module`` that transformers left unset, or an attribute without storage.

    The attribute ``apart`` may have none.
    """
    for name, buffer in module.named_buffers(recurse=False):
        unmade = buffer.isnan() if buffer.is_floating_point() else buffer == _sentinel(buffer.dtype)
        if bool(unmade.all()) and buffer.numel():
            raise UnsupportedError(f"{path}.{name}: {UNSET}")
    for name, value in vars(module).items():
        if name != apart and getattr(value, "is_meta", False):
            raise UnsupportedError(f"{path}.{name}: {UNLOADED}")
