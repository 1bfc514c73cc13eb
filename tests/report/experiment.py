"""What the tests of this room write up."""

from collections.abc import Callable
from typing import Any

Write = Callable[..., str]
SMALL: dict[str, Any] = {
    "models": [{"name": "smol", "source": "path:smol.gguf", "family": "decoder", "dtype": "bfloat16"}],
    "variants": [{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
    "benchmarks": {"decoder": [{"task": "piqa", "limit": 60}]},
    "runtime": {"engines": ["deepspeed"], "ranks": [1, 2], "workloads": [{"prompt": 32, "generate": 8}]},
}
DREAM: dict[str, Any] = {
    "name": "dream",
    "source": "random",
    "architecture": {"model_type": "llama"},
    "family": "decoder",
}
