"""What the checks share: the device, models of random weights, and ways to measure them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebench import devices
from sparsebench.manifest.names import Family
from sparsebench.models.random_weights import write_random
from sparsebench.runtime import LatencyResult, MemoryResult, Setting, Workload, measure_memory, measure_pair

CheckResult = tuple[bool, dict[str, Any]]
"""Whether a check passed, and the numbers that it was judged by."""
CPU_DIVISOR = 4
"""On a CPU, widths and heads are divided by this."""


def _config(kind: str, hidden: int, heads: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": inner,
        "vocab_size": vocabulary, "num_hidden_layers": 4, "max_position_embeddings": 512, "pad_token_id": 0, **more,
    }  # fmt: skip


END_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
SHAPES: dict[str, tuple[Family, dict[str, Any]]] = {
    "deberta": ("encoder", _config(
        "deberta-v2", 1536, 24, 6144, 128100, relative_attention=True, position_buckets=256,
        pos_att_type=["c2p", "p2c"], norm_rel_ebd="layer_norm", share_att_key=True,
    )),
    "bert": ("encoder", _config("bert", 1024, 16, 4096, 30522)),
    "opt": ("decoder", _config("opt", 2048, 32, 8192, 50272, ffn_dim=8192, word_embed_proj_dim=2048, **END_TOKENS)),
    "llama": ("decoder", _config("llama", 2048, 32, 8192, 32000, num_key_value_heads=8, **END_TOKENS)),
    "t5": ("encoder-decoder", {
        "model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32,
        "num_layers": 4, "num_decoder_layers": 4, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
    }),
}  # fmt: skip
"""DeBERTa-v2-xxlarge, BERT-large, OPT-1.3b, a Llama and T5-XL, but for the number of blocks."""
DIVIDED_ON_CPU = (
    "hidden_size", "num_attention_heads", "intermediate_size", "ffn_dim", "word_embed_proj_dim", "num_key_value_heads",
    "d_model", "d_ff", "num_heads", "position_buckets",
)  # fmt: skip


class CheckSkipped(Exception):
    """The check means nothing here; the message says why."""


@dataclass(frozen=True)
class Bench:
    """The device, how many ranks there may be, and a folder for models."""

    device: str
    ranks: int
    folder: Path

    @property
    def gpu(self) -> bool:
        """Whether a GPU is examined."""
        return devices.is_gpu(self.device)

    def select_gpu(self) -> None:
        """Have code that names no GPU use this one."""
        if self.gpu:
            torch.cuda.set_device(torch.device(self.device).index or 0)

    def need_gpu(self) -> None:
        """Raise CheckSkipped where a CPU is examined."""
        if not self.gpu:
            raise CheckSkipped("a CPU is examined")

    @property
    def dtype(self) -> str:
        """The precision that models are measured in."""
        return "bfloat16" if self.gpu else "float32"

    def rank_counts(self) -> list[int]:
        """Return the numbers of ranks that can share a model. Raises CheckSkipped where there is only one rank."""
        if self.ranks < 2:
            raise CheckSkipped("the check needs two ranks")
        return [ranks for ranks in (2, 4, 8) if ranks <= self.ranks]

    def model(self, name: str) -> tuple[Path, Family]:
        """Return a model of random weights, made when first asked for, and its family."""
        family, config = SHAPES[name]
        if not self.gpu:
            narrow = {key: value // CPU_DIVISOR for key, value in config.items() if key in DIVIDED_ON_CPU}
            config = {**config, **narrow, "vocab_size": 128}
        folder = self.folder / name
        if not folder.is_dir():
            write_random(config, folder, family, self.dtype)
        return folder, family

    def setting(self, engine: str, ranks: int = 1, **more: Any) -> Setting:
        """Return how to measure on the device: briefly, unless ``more`` says otherwise."""
        usual: dict[str, Any] = {
            "workload": Workload(1, 32, 4), "samples": 4, "processes": 1, "phase_seconds": 1.0, "dtype": self.dtype,
            "device": self.device,
        }  # fmt: skip
        return Setting(engine, ranks, **usual | more)

    def memory(self, name: str, engine: str, ranks: int = 1) -> MemoryResult:
        """Measure the memory of a model; this also checks parity and runs a decode with a cache."""
        folder, family = self.model(name)
        return measure_memory(folder, family, self.setting(engine, ranks))

    def latency(self, variant: Path, name: str, engine: str, **more: Any) -> LatencyResult:
        """Time a variant against the model."""
        folder, family = self.model(name)
        return measure_pair(folder, variant, family, self.setting(engine, **more))


def output_distance(result: MemoryResult | LatencyResult) -> float:
    """Return the relative L2 distance from the plain model's output; infinity where nothing was compared."""
    return result.parity.relative_l2 if result.parity else math.inf
