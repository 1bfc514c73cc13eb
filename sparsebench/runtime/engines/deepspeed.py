"""DeepSpeed inference: ``init_inference``, sharded by AutoTP at two ranks and more (facts checked on 0.19.8)."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.files.checkpoint import FLOATS, Checkpoint
from sparsebench.models.files.families import PER_LAYER
from sparsebench.runtime import shm
from sparsebench.runtime.engines.base import DENSE, SavedModel, Wrapping
from sparsebench.runtime.failures import not_the_models
from sparsebench.runtime.parity import TOKENS, check_parity
from sparsebench.runtime.results import Parity
from sparsebench.runtime.workload import Prompt, text_config

NOT_SHARDED = {
    "gpt2": "AutoTP refuses GPT-2, whose weights lie in Conv1D layers",
    "bloom": "AutoTP cuts Bloom's attention but not its ALiBi biases, which stay those of all heads",
    "falcon": "AutoTP cuts Falcon's fused query, key and value to shapes that are no whole heads",
    "gpt_oss": "AutoTP cuts GPT-OSS's attention but not its sinks, which stay those of all heads",
    **dict.fromkeys(
        ("llama4", "llama4_text"), "AutoTP puts a plain layer in the place of Llama 4's router, which gives two things"
    ),
    **dict.fromkeys(
        ("falcon_mamba", "jamba", "mamba", "mamba2"),
        "AutoTP cuts what a state-space layer projects but not the sizes that it is split into",
    ),
    **dict.fromkeys(("olmo2", "olmoe"), "AutoTP cuts queries and keys but not the norms that span all heads"),
    "phimoe": "AutoTP cuts PhiMoE's router but not what it reads",
    "modernbert": "AutoTP cuts ModernBERT's fused projections to shapes that do not multiply",
    "phi3": "AutoTP cuts Phi-3's output projection but not its fused query, key and value",
}
"""Model types that AutoTP cannot shard, and why."""
BY_HEADS = ("mt5", "t5", "umt5")
"""Model types in which AutoTP shards every layer by whole heads; in others it cuts at least the feed-forward part."""


class DeepSpeed(Wrapping):
    """DeepSpeed's inference engine, with torch's kernels: under transformers 5 its own run no model measured here."""

    def __init__(self) -> None:
        self.ranks, self.cuda = 1, False

    @property
    def kernel(self) -> str:
        """torch's kernels for floats or for integers."""
        return self.multiplied or DENSE

    def check(self, config: Mapping[str, Any], ranks: int) -> None:
        """Raise UnsupportedError at several ranks for architectures that AutoTP shards wrongly or not at all."""
        if ranks == 1:
            return
        settings = text_config(config)
        reason = NOT_SHARDED.get(settings.get("model_type", ""))
        heads = settings.get("num_heads", ranks)
        if settings.get("model_type") in BY_HEADS and heads < ranks:
            reason = f"AutoTP shares T5 out by whole heads, and {heads} are fewer than ranks"
        if config.get(PER_LAYER):
            reason = f"AutoTP counts the same heads in every block, and `{PER_LAYER}` gives blocks their own"
        if reason:
            raise UnsupportedError(f"{reason}: not measured at {ranks} ranks", "measure it at one rank")

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Join the group of ranks; return a note where the shared-memory all-reduce is not used on a CPU."""
        import torch

        self.ranks, self.cuda = ranks, torch.cuda.is_available()
        if ranks == 1:
            return ()
        reason = os.environ.get(shm.DISABLED)
        join(rank, "the ranks are on GPUs" if self.cuda else reason)
        return (f"plain gloo: {reason}",) if reason and not self.cuda else ()

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> Any:
        """Load and wrap; where ``cut_first`` holds, cut the weights before they are widened to float32."""
        if not self._cuts_first(source):
            return super().load(source, tokens, baseline)
        return self._cut_and_widen(SavedModel(source.folder, source.family).plain(), tokens)

    def _cuts_first(self, source: SavedModel) -> bool:
        stored = {info.dtype for info in Checkpoint(source.folder).tensors.values() if info.dtype in FLOATS}
        return not self.cuda and cut_first(stored, source.dtype, self.ranks)

    def _cut_and_widen(self, model: Any, tokens: int) -> Any:
        """Wrap ``model`` in bfloat16, which holds all its weights exactly, then widen it to float32."""
        import torch

        # DeepSpeed rounds these buffers, such as rotary frequencies, to the weights' precision.
        exact = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
        engine = self.wrap(model.bfloat16(), torch.bfloat16, tokens)
        engine.module.float()
        for name, buffer in exact.items():
            owner, _, attribute = name.rpartition(".")
            engine.module.get_submodule(owner)._buffers[attribute] = buffer
        return engine

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        """Wrap by ``deepspeed.init_inference`` with AutoTP.

        Raises UnsupportedError where DeepSpeed refuses the model, MeasureError where it shards nothing.
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
            if not_the_models(error):
                raise
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

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity | None:
        """Compare with the plain float32 model; at one rank DeepSpeed only wraps it, and the result says so.

        A quantized model is compared with its weights as floats.
        """
        import torch

        if source.quantized:
            return source.against_floats(prompt, lambda model: self.wrap(model, model.dtype, TOKENS))

        def made(model: Any) -> Any:
            if self._cuts_first(source):
                return self._cut_and_widen(model, TOKENS)
            return self.wrap(model, torch.float32, TOKENS)

        plain = SavedModel(source.folder, source.family).plain()
        found = check_parity(plain, made, source.family, prompt, False)
        return replace(found, wraps_only=self.ranks == 1)


def cut_first(stored: Collection[str], dtype: str, ranks: int) -> bool:
    """Return whether weights of the dtypes ``stored`` are cut as stored, and only shares are widened to ``dtype``.

    Every rank reads the whole model. In the file's precision it is mapped, which costs nothing; widened, it is a copy
    for each rank. Widening bfloat16 to float32 is exact, so the order makes no difference. On a GPU only the shares
    count anyway.
    """
    return ranks > 1 and dtype == "float32" and set(stored) == {"BF16"}


def join(rank: int, without_shm: str | None) -> None:
    """Join the group that the environment describes; a reason ``without_shm`` turns the shared-memory operation off."""
    import deepspeed
    import torch.distributed as dist

    if without_shm:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    # After the barrier all ranks have mapped all buffers: names removed now are not left behind, even by SIGKILL.
    dist.barrier()
    shm.unlink(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], [rank])


def block_parameters(model: Any) -> int:
    """Count the parameters inside lists of modules, which are the transformer blocks.

    Embeddings do not count: AutoTP leaves them whole, and unties an output head to shard it, so that a small model's
    total can even rise.
    """
    from torch import nn

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return sum({id(one): one.numel() for module in lists for one in module.parameters()}.values())
