"""The kernels for GPUs compile for real ones, which the interpreter does not show. No GPU is needed, but triton is."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sparsebench.runtime.kernels import bitmask_gpu

capability, dtype = int(sys.argv[1]), sys.argv[2]
held = {"values": f"*{dtype}", "words": "*i32", "starts": "*i32"}
for kernel, signature, settings in (
    (bitmask_gpu._expand, {**held, "dense": f"*{dtype}", "rows": "i32", "cols": "i32", "blocks": "i32"}, {"height": 16}),
    *(
        (
            bitmask_gpu._multiply,
            {**held, **{name: f"*{dtype}" for name in ("x", "y", "bias")}, **dict.fromkeys(("rows", "cols", "tokens"), "i32")},
            {"biased": True, "height": bitmask_gpu.PROGRAM_ROWS[width], "width": width},
        )
        for width in (1, bitmask_gpu.MOST_TOKENS)
    ),
):
    source = ASTSource(kernel, signature=signature | dict.fromkeys(settings, "constexpr"), constexprs=settings)
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no triton")
@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp32"), (75, "fp16")])
def test_the_kernels_compile_for_gpus(capability: int, dtype: str) -> None:
    # In a process of its own: this one has Triton's interpreter in the compiler's place.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    asked = [sys.executable, "-c", COMPILE, str(capability), dtype]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
