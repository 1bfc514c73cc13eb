"""Estimates how much memory measuring a model needs, from its files and the workload, before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sparsebench.models.files.checkpoint import ELEMENT_BYTES, FLOAT_DTYPES, Checkpoint
from sparsebench.models.files.families import dimensions, family_of
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.shape.topology import part
from sparsebench.runtime.engines import engines
from sparsebench.runtime.results import PARITY_BLOCKS, Setting
from sparsebench.storage import is_packed
from sparsebench.storage.packed import PackedCheckpoint

RANK_BYTES = 700 * 2**20
"""The memory of a rank without a model: its imports (430 MB measured), and a reserve for what no file shows."""
INDEXED_RATIO = 2
"""The most that a packed model's nonzeros take when laid out for the kernels, divided by their packed size."""
PREFETCHED_PARAMETERS = 50_000_000
"""Parameters that ZeRO-3 gathers ahead of the running layer, by DeepSpeed's default."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
    checkpoint = PackedCheckpoint(folder) if is_packed(folder) else Checkpoint(folder)
    size, workload = dimensions(checkpoint.config), setting.workload
    stored = {ELEMENT_BYTES[info.dtype] for info in checkpoint.tensors.values() if info.dtype in FLOAT_DTYPES}
    item_bytes = DTYPE_BYTES.get(setting.dtype) or max(stored, default=4)
    tokens = workload.batch * (workload.prompt + workload.generate)
    cached_layers = 0 if family_of(checkpoint.config) == "encoder" else size.decoder_layers or size.layers
    cache = 2 * cached_layers * size.key_heads * size.head_size * tokens * item_bytes
    activations = workload.batch * workload.prompt * (4 * size.hidden + 3 * size.inner) * item_bytes
    return cache + setting.ranks * activations


def model_bytes(folder: Path, setting: Setting) -> int:
    """Estimate the model's bytes in a footprint: its tensors while loading, or its shortened float32 copies for parity.

    Every rank loads the whole model before it keeps its share. In the checkpoint's own dtype the file is mapped and
    costs nothing that the system cannot take back; a converted model is a copy. Where the model is cut first, each rank
    copies only what is outside of the blocks and is not cut.
    """
    packed = PackedCheckpoint(folder) if is_packed(folder) else None
    checkpoint = packed or open_checkpoint(folder)
    tensors = checkpoint.tensors.values()
    dtypes = {info.dtype for info in tensors if info.dtype in FLOAT_DTYPES}
    item_bytes = DTYPE_BYTES.get(setting.dtype)
    stored = tensors if isinstance(checkpoint, PackedCheckpoint) else checkpoint.stored.values()
    loaded = sum(
        info.numel * item_bytes if item_bytes and info.dtype in FLOAT_DTYPES else info.nbytes for info in stored
    )
    if packed:
        loaded = min(loaded, sum(entry.nbytes for _, entry in packed.entries.values()) * INDEXED_RATIO)
    blocks = {info.name: part(info, checkpoint.config, "").block for info in tensors}
    if engines()[setting.engine].cuts_first and cut_first(dtypes, setting.dtype, setting.ranks):
        copied = sum(4 * info.numel for info in tensors if blocks[info.name] is None)
    elif packed or (item_bytes and any(ELEMENT_BYTES[dtype] != item_bytes for dtype in dtypes)):
        copied = loaded
    else:
        copied = 0
    gathered = 0
    if engines()[setting.engine].offloads:  # the largest tensor, and what is read ahead
        counts = [info.numel for info in tensors]
        gathered = (max(counts, default=0) + min(PREFETCHED_PARAMETERS, sum(counts))) * (item_bytes or 4)
    shortened = sum(4 * info.numel for info in tensors if (blocks[info.name] or 0) < PARITY_BLOCKS)
    return max(loaded + copied * (setting.ranks - 1) + setting.ranks * gathered, shortened * setting.ranks)


def cut_first(stored: Collection[str], dtype: str, ranks: int) -> bool:
    """Return whether weights of the dtypes ``stored`` are cut as stored, and only shares are widened to ``dtype``.

    Every rank reads the whole model. In the file's precision it is mapped, which costs nothing; widened, it is a copy
    for each rank. Widening bfloat16 to float32 is exact, so the order makes no difference. On a GPU only the shares
    count anyway.
    """
    return ranks > 1 and dtype == "float32" and set(stored) == {"BF16"}
