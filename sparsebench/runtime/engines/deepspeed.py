"""DeepSpeed inference: ``init_inference``, sharded by AutoTP at two ranks and more (facts checked on 0.19.8)."""

from __future__ import annotations

import os
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from sparsebench.errors import MeasureError
from sparsebench.models.files.checkpoint import FLOAT_DTYPES, Checkpoint
from sparsebench.runtime import all_reduce
from sparsebench.runtime.engines.base import DENSE, SavedModel, WrappingEngine
from sparsebench.runtime.failures import refused
from sparsebench.runtime.footprint import cut_first
from sparsebench.runtime.parity import PARITY_TOKENS, check_parity
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt


class DeepSpeed(WrappingEngine):
    """DeepSpeed's inference engine, with torch's kernels: under transformers 5 its own run no model measured here."""

    def __init__(self) -> None:
        self.ranks, self.cuda = 1, False

    @property
    def kernel(self) -> str:
        """torch's kernels for floats or for integers."""
        return self.integer_kernels or DENSE

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Join the group of ranks; return a note where the shared-memory all-reduce is not used on a CPU."""
        self.ranks, self.cuda = ranks, torch.cuda.is_available()
        if ranks == 1:
            return ()
        reason = os.environ.get(all_reduce.REASON_DISABLED)
        join_ranks(rank, "the ranks are on GPUs" if self.cuda else reason)
        return (f"plain gloo: {reason}",) if reason and not self.cuda else ()

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """Load and wrap; where ``cut_first`` holds, cut the weights before they are widened to float32."""
        if not self._cuts_first(source):
            return super().load(source, tokens, baseline)
        return self._cut_and_widen(source.load_stored(), tokens)

    def _cuts_first(self, source: SavedModel) -> bool:
        stored = {info.dtype for info in Checkpoint(source.folder).tensors.values() if info.dtype in FLOAT_DTYPES}
        return not self.cuda and cut_first(stored, source.dtype, self.ranks)

    def _cut_and_widen(self, model: Any, tokens: int) -> Any:
        """Wrap ``model`` in bfloat16, which holds all its weights exactly, then widen it to float32."""
        # DeepSpeed rounds these buffers, such as rotary frequencies, to the weights' precision.
        exact_buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
        engine = self.wrap(model.bfloat16(), torch.bfloat16, tokens)
        engine.module.float()
        for name, buffer in exact_buffers.items():
            owner, _, attribute = name.rpartition(".")
            engine.module.get_submodule(owner)._buffers[attribute] = buffer
        return engine

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Wrap by ``deepspeed.init_inference`` with AutoTP.

        Raises UnsupportedError where DeepSpeed refuses the model, MeasureError where it shards nothing.
        """
        whole_count = block_parameters(model)
        with refused(f"DeepSpeed refuses a {type(model).__name__} at {self.ranks} ranks"):
            engine = deepspeed.init_inference(
                model,
                tensor_parallel={"tp_size": self.ranks},
                dtype=dtype,
                replace_with_kernel_inject=False,
                max_out_tokens=tokens,
            )
        if self.ranks > 1 and block_parameters(engine.module) >= whole_count:
            raise MeasureError(
                f"DeepSpeed left all {whole_count} block parameters on each of {self.ranks} ranks",
                "measure at one rank",
            )
        if hasattr(engine.module, "get_encoder"):
            engine.get_encoder = engine.module.get_encoder
        return engine

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the plain float32 model; at one rank DeepSpeed only wraps it, and the result says so.

        A quantized model is compared with its weights as floats.
        """
        if source.quantized:
            return source.parity_with_floats(prompt, lambda model: self.wrap(model, model.dtype, PARITY_TOKENS))

        def wrapped(model: Any) -> Any:
            if self._cuts_first(source):
                return self._cut_and_widen(model, PARITY_TOKENS)
            return self.wrap(model, torch.float32, PARITY_TOKENS)

        return check_parity(source.load_stored(), wrapped, source.family, prompt, wraps_only=self.ranks == 1)


def join_ranks(rank: int, without_shm: str | None) -> None:
    """Join the group that the environment describes; a reason ``without_shm`` turns the shared-memory operation off."""
    if without_shm:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    # After the barrier all ranks have mapped all buffers: names removed now are not left behind, even by SIGKILL.
    dist.barrier()
    all_reduce.remove_buffers(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], [rank])


def block_parameters(model: Any) -> int:
    """Count the parameters inside lists of modules, which are the transformer blocks.

    Embeddings do not count: AutoTP leaves them whole, and unties an output head to shard it, so that a small model's
    total can even rise.
    """
    block_lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sum({id(weight): weight.numel() for module in block_lists for weight in module.parameters()}.values())
