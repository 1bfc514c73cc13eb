"""DeepSpeed inference: ``init_inference``, sharded by AutoTP at two ranks and more (facts checked on 0.19.8)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.runtime import shm
from sparsebench.runtime.engines.base import Source, Wrapping
from sparsebench.runtime.parity import TOKENS, compare
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Inputs, text_config

NOT_SHARDED = {
    "gpt2": "AutoTP refuses GPT-2, whose weights lie in Conv1D layers",
    "bloom": "AutoTP cuts Bloom's attention but not its ALiBi biases, which stay those of all heads",
    "modernbert": "AutoTP cuts ModernBERT's fused projections to shapes that do not multiply",
    "phi3": "AutoTP cuts Phi-3's output projection but not its fused query, key and value",
}
"""Model types that AutoTP cannot shard, and why."""


class DeepSpeed(Wrapping):
    """DeepSpeed's inference engine."""

    kernel = "dense torch linear"

    def __init__(self) -> None:
        self.ranks = 1

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Raise UnsupportedError at several ranks for architectures that AutoTP shards wrongly or not at all."""
        if ranks == 1:
            return
        settings = text_config(config)
        reason = NOT_SHARDED.get(settings.get("model_type", ""))
        if reason:
            raise UnsupportedError(f"{reason}: not measured at {ranks} ranks", "measure it at one rank")

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Join the group of ranks; notes say where the shared-memory all-reduce was given up."""
        import deepspeed

        self.ranks = ranks
        if ranks == 1:
            return ()
        notes = []
        reason = os.environ.get(shm.DISABLED)
        if reason:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            notes.append(f"plain gloo: {reason}")
        deepspeed.init_distributed(verbose=False)
        import torch.distributed as dist

        # Behind the barrier all ranks have mapped all buffers: names that go now are not left behind, even by SIGKILL.
        dist.barrier()
        shm.unlink(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], [rank])
        return tuple(notes)

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """``deepspeed.init_inference`` with AutoTP. Raises UnsupportedError where DeepSpeed refuses, MeasureError where it
        shards nothing.
        """
        import deepspeed

        whole = block_parameters(model)
        try:
            engine = deepspeed.init_inference(
                model,
                tensor_parallel={"tp_size": self.ranks},
                dtype=dtype,
                replace_with_kernel_inject=False,
                max_out_tokens=tokens,
            )
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UnsupportedError(
                f"DeepSpeed refuses a {type(model).__name__} at {self.ranks} ranks: {error}"
            ) from error
        if self.ranks > 1 and block_parameters(engine.module) >= whole:
            raise MeasureError(
                f"DeepSpeed left all {whole} block parameters on each of {self.ranks} ranks", "measure at one rank"
            )
        if hasattr(engine.module, "get_encoder"):
            engine.get_encoder = engine.module.get_encoder
        return engine

    def parity(self, source: Source, prompt: Inputs) -> Parity | None:
        """Against the plain float32 model; at one rank DeepSpeed only wraps it, and the result says so."""
        import torch

        return compare(
            Source(source.folder, source.family).plain(),
            lambda one: self.wrap(one, torch.float32, TOKENS),
            source.family,
            prompt,
            wraps_only=self.ranks == 1,
        )


def block_parameters(model: Any) -> int:
    """Parameters inside lists of modules: the transformer blocks.

    Embeddings do not count: AutoTP leaves them whole, and unties an output head to shard it, so that a small model's
    total can even rise.
    """
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sum({id(one): one.numel() for module in lists for one in module.parameters()}.values())
