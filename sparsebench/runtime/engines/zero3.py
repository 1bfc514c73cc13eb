"""DeepSpeed's ZeRO stage 3 without training: each rank keeps a share of every parameter, outside of the accelerator.

It is ``deepspeed.initialize`` without an optimizer. A layer's parameters are gathered on each rank just before it runs
and freed after it; every rank computes the whole request. So ranks share memory, not work. On a machine without an
accelerator parameters are offloaded to the memory that they would be in anyway, which saves nothing at one rank.
Seen on 0.19.8: right at one rank and two, for encoders, decoders and encoder-decoders, on a CPU.
"""

from __future__ import annotations

import gc
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero import parameter_offload

from sparsebench.errors import MeasureError
from sparsebench.runtime.engines.base import DENSE, SavedModel, WrappingEngine
from sparsebench.runtime.engines.deepspeed import join_ranks
from sparsebench.runtime.failures import refused
from sparsebench.runtime.parity import check_parity
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt

NOTE = "ZeRO-3: every rank computes the whole request, parameters are gathered layer by layer"


class Zero3(WrappingEngine):
    """ZeRO-3 with the parameters in main memory."""

    kernel = f"{DENSE}, ZeRO-3: parameters gathered layer by layer"

    def __init__(self) -> None:
        self.ranks, self.device = 1, "cpu"

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Join the process group, also at one rank; return the notes for the record."""
        self.ranks, self.device = ranks, "cuda" if torch.cuda.is_available() else "cpu"
        join_ranks(rank, without_shm="it gathers nothing")
        return (NOTE,)

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Wrap the model in DeepSpeed's engine, with this rank's shares in main memory; ``hidden_bytes`` is their size.

        Raises UnsupportedError for a model that ZeRO-3 refuses, MeasureError when DeepSpeed cut nothing at several
        ranks.
        """
        parameter_count = sum(parameter.numel() for parameter in model.parameters())
        with refused(f"DeepSpeed's ZeRO-3 refuses a {type(model).__name__}"):
            if self.device != "cpu":
                cut_parameters(model, dtype, self.device)
            engine = deepspeed.initialize(model=model, config=settings(dtype))[0]
        # This global list of DeepSpeed's would keep every wrapped model alive; a running model fills it again.
        parameter_offload.FWD_MODULE_STACK.clear()
        engine.module.eval()
        shares = [parameter.ds_tensor for parameter in engine.module.parameters()]
        if self.ranks > 1 and sum(share.numel() for share in shares) >= parameter_count:
            raise MeasureError(
                f"DeepSpeed left all {parameter_count} parameters on each of {self.ranks} ranks", "measure at one rank"
            )
        engine.hidden_bytes = sum(share.untyped_storage().nbytes() for share in shares)
        return engine

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare the outputs with plain transformers' in float32; destroy the engine made for that at the end."""
        engines: list[Any] = []

        def wrap_and_note(model: Any) -> Any:
            engines.append(self.wrap(model, torch.float32, 0))
            return engines[0]

        plain = source.load_stored()
        try:
            return check_parity(plain, wrap_and_note, source.family, prompt, wraps_only=False)
        finally:
            for engine in engines:
                engine.destroy()
            gc.collect()


def cut_parameters(model: Any, dtype: Any, device: str) -> None:
    """Cut each parameter of ``model`` to this rank's share, in main memory; move the uncut buffers to ``device``.

    ``deepspeed.initialize`` would move the whole model to the GPU before cutting it, where it may not fit.
    """
    deepspeed.zero.Init(module=model, config_dict_or_path=settings(dtype), remote_device="cpu", dtype=dtype)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)


def settings(dtype: Any) -> dict[str, Any]:
    """Return DeepSpeed's configuration; what is not named keeps DeepSpeed's default."""
    cuda = torch.cuda.is_available()
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires a number
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu", "pin_memory": cuda}},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
    }
