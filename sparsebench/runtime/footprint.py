"""Estimates how much memory measuring a model needs, from its files and the workload, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from sparsebench.models.files.checkpoint import FLOATS, ITEM_SIZE, Checkpoint
from sparsebench.models.files.families import dimensions, family_of
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.shape.topology import part
from sparsebench.runtime.engines import engines
from sparsebench.runtime.engines.deepspeed import cut_first
from sparsebench.runtime.parity import BLOCKS
from sparsebench.runtime.results import Setting
from sparsebench.storage import is_packed
from sparsebench.storage.packed import PackedCheckpoint

RANK_BYTES = 700 * 2**20
"""The memory of a rank without a model: its imports (430 MB measured), and a reserve for what no file shows."""
INDEXED = 2
"""The most that a packed model's nonzeros take when laid out for the kernels, divided by their packed size."""
PREFETCHED = 50_000_000
"""Parameters that ZeRO-3 gathers ahead of the running layer, by DeepSpeed's default."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def footprint(folder: Path, setting: Setting) -> int:
    """Estimate the bytes that all ranks together need to measure the model in ``folder`` alone.

    The estimate uses file headers and the workload. Raises ModelError for a folder that is no checkpoint.
    """
    return setting.ranks * RANK_BYTES + working_bytes(folder, setting)


def working_bytes(folder: Path, setting: Setting) -> int:
    """Estimate the bytes of model and requests without the ranks' own: with GPUs, what is on them."""
    return model_bytes(folder, setting) + request_bytes(folder, setting)


def request_bytes(folder: Path, setting: Setting) -> int:
    """Estimate the bytes of the requests: keys and values of every token, and each rank's activations of one block.

    A token's activations are its hidden states and the feed-forward part's intermediate values, with temporary copies.
    """
    checkpoint = PackedCheckpoint(folder) if is_packed(folder) else Checkpoint(Path(folder))
    size, work = dimensions(checkpoint.config), setting.workload
    stored = {ITEM_SIZE[info.dtype] for info in checkpoint.tensors.values() if info.dtype in FLOATS}
    item = BYTES.get(setting.dtype) or max(stored, default=4)
    tokens = work.batch * (work.prompt + work.generate)
    caching = 0 if family_of(checkpoint.config) == "encoder" else size.decoder_layers or size.layers
    cached = 2 * caching * size.key_heads * size.head_size * tokens * item
    passing = work.batch * work.prompt * (4 * size.hidden + 3 * size.inner) * item
    return cached + setting.ranks * passing


def model_bytes(folder: Path, setting: Setting) -> int:
    """Estimate the model's bytes in a footprint: its tensors while loading, or its shortened float32 copies for parity.

    Every rank loads the whole model before it keeps its share. In the checkpoint's own dtype the file is mapped and
    costs nothing that the system cannot take back; a converted model is a copy. Where the model is cut first, each rank
    copies only what is outside of the blocks and is not cut.
    """
    packed = PackedCheckpoint(folder) if is_packed(folder) else None
    checkpoint = packed or open_checkpoint(Path(folder))
    tensors = checkpoint.tensors.values()
    row = engines()[setting.engine]
    size = BYTES.get(setting.dtype)
    converted = packed is not None or (
        size is not None and any(ITEM_SIZE[info.dtype] != size for info in tensors if info.dtype in FLOATS)
    )
    stored = tensors if isinstance(checkpoint, PackedCheckpoint) else checkpoint.stored.values()
    kept = sum(info.numel * size if size and info.dtype in FLOATS else info.nbytes for info in stored)
    if packed:
        kept = min(kept, sum(entry.nbytes for _, entry in packed.entries.values()) * INDEXED)
    layers = {info.name: part(info, checkpoint.config, "").layer for info in tensors}
    shortened = sum(4 * info.numel for info in tensors if (layers[info.name] or 0) < BLOCKS)
    copied = kept if converted else 0
    if row.cuts_first and cut_first(
        {info.dtype for info in tensors if info.dtype in FLOATS}, setting.dtype, setting.ranks
    ):
        copied = sum(4 * info.numel for info in tensors if layers[info.name] is None)
    held = kept + copied * (setting.ranks - 1) + setting.ranks * _gathered(checkpoint, setting, size)
    return max(held, shortened * setting.ranks)


def _gathered(checkpoint: Checkpoint | PackedCheckpoint, setting: Setting, size: int | None) -> int:
    """Return the most bytes that a rank has gathered besides its share: the largest tensor and what is read ahead."""
    if not engines()[setting.engine].offloads:
        return 0
    counts = [info.numel for info in checkpoint.tensors.values()]
    return (max(counts, default=0) + min(PREFETCHED, sum(counts))) * (size or 4)
