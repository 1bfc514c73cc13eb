"""DeepSparse's product of one token with a sparse layer: the worker of `kernels.py --deepsparse PYTHON`.

    pip install deepsparse==1.8.0        in an environment of its own, whose interpreter is PYTHON

Not run by hand. It is told a weight's file, builds an ONNX graph of as many such layers beside each other as its caller's copies
(rows turned about, or equal layers would be computed once), lets DeepSparse compile it for one core, checks what comes out, and
then times as many products as each line of its input says, in CPU seconds or wall seconds a product.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["NM_DISABLE_ANALYTICS"] = "1"

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def graph(weight: np.ndarray, copies: int) -> onnx.ModelProto:
    """One token (1, in) through ``copies`` layers (out, in) beside each other."""
    rows, cols = weight.shape
    nodes, tables, outputs = [], [], []
    for number in range(copies):
        tables.append(numpy_helper.from_array(np.ascontiguousarray(np.roll(weight, number, axis=0).T), f"w{number}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{number}"], [f"y{number}"]))
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [1, rows]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, cols])]
    made = helper.make_model(helper.make_graph(nodes, "layers", given, outputs, tables))
    made.opset_import[0].version = 13
    return made


def main(weight_file: str, token_file: str, copies: str, clock_name: str) -> None:
    """Answer ``ready``, then for each number of products the seconds that one took."""
    import deepsparse

    # What the library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    weight, x = np.load(weight_file), np.load(token_file)
    path = weight_file + ".onnx"
    onnx.save(graph(weight, int(copies)), path)
    engine = deepsparse.compile_model(path, batch_size=1, num_cores=1)
    os.unlink(path)
    for number, found in enumerate(engine.run([x])):
        np.testing.assert_allclose(found, x @ np.roll(weight, number, axis=0).T, rtol=1e-3, atol=1e-4)
    clock = time.perf_counter if clock_name == "wall" else time.process_time
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        runs = max(1, int(line) // int(copies))
        start = clock()
        for _ in range(runs):
            engine.run([x])
        print((clock() - start) / runs / int(copies), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
