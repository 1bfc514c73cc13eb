"""A GGUF variant as llama.cpp runs it, beside the floats that are scored: perplexity, distributions, and times of its own.

    PYTHONPATH=… python studies/llamacpp.py DENSE [VARIANT …] [--windows 4] [--length 512] [--server]

DENSE and each VARIANT are model folders; a VARIANT holds `model.gguf`, as `{quantize: gguf}` leaves it, and DENSE is written as
F32. Both score the same windows of the text of the task `perplexity`: transformers in float32, llama.cpp by its logits. Printed
are both perplexities; the second also with the variant's floats in llama.cpp's float32 kernels, which leaves its rounding of
activations, to 8 bits beside integers and to 16 beside BF16; and of each variant's floats the mean Kullback-Leibler divergence
from the dense model and the share of tokens with the same likeliest successor.
``--server`` also asks llama.cpp's own server, which the package has, how long a prompt of 128 tokens and 32 more take,
beside the same through our engine.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparsebench import sources
from sparsebench.benchmarks.contract import TaskSpec
from sparsebench.benchmarks.perplexity import windows_of
from sparsebench.benchmarks.running_text import RunningText
from sparsebench.models.files.gguf_variant import gguf_file
from sparsebench.models.files.text import load_tokenizer, token_ids
from sparsebench.models.gguf_writer import write_gguf
from sparsebench.models.modules.load import load_model
from sparsebench.runtime.engines.llamacpp import LlamaContext


def by_transformers(folder: Path, windows: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Return each window's logarithms of probabilities (tokens, vocabulary), of the model in float32."""
    model = load_model(folder, "decoder", "float32")
    with torch.inference_mode():
        return [model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in windows]


def by_llama(context: LlamaContext, windows: tuple[tuple[int, ...], ...]) -> list[torch.Tensor]:
    """Return the same by llama.cpp."""
    found = []
    for ids in windows:
        context.forget()
        context.decode(ids, all_logits=True)
        rows = [torch.from_numpy(context.logits(index).copy()) for index in range(len(ids))]
        found.append(torch.stack(rows).log_softmax(-1))
    return found


def perplexity(windows: tuple[tuple[int, ...], ...], found: list[torch.Tensor]) -> float:
    """Return exp of the mean negative log-likelihood of all tokens but each window's first."""
    each = [
        -row[:-1].double().gather(1, torch.tensor(ids[1:])[:, None]) for ids, row in zip(windows, found, strict=True)
    ]
    return math.exp(float(torch.cat(each).mean()))


def by_server(file: Path, ids: tuple[int, ...], times: int = 5) -> tuple[float, float]:
    """Return llama.cpp's own median milliseconds of the prompt and of one more token."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = xllamacpp.Server(params)
    asked = {"prompt": list(ids), "n_predict": 32, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
    found: list[Any] = [server.handle_completions(asked)["timings"] for _ in range(times + 1)][1:]
    return median(one["prompt_ms"] for one in found), median(one["predicted_per_token_ms"] for one in found)


def by_engine(file: Path, ids: tuple[int, ...], times: int = 5) -> tuple[float, float]:
    """Return the same through our engine's calls."""
    context, found = LlamaContext(file, 512), []
    for _ in range(times + 1):
        context.forget()
        start = time.perf_counter()
        context.decode(ids)
        token, middle = context.likeliest_token(), time.perf_counter()
        for _ in range(32):
            context.decode(token)
            token = context.likeliest_token()
        found.append((1e3 * (middle - start), 1e3 * (time.perf_counter() - middle) / 32))
    return median(prompt for prompt, _ in found[1:]), median(one for _, one in found[1:])


def main() -> None:
    """Print one line for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--server", action="store_true")
    wanted = parser.parse_args()
    text = RunningText.of(TaskSpec("perplexity"), sources.Cache()).text
    dense = wanted.folders[0]
    windows = windows_of(token_ids(load_tokenizer(dense), text[:200_000]), wanted.length).ids[: wanted.windows]
    reference = by_transformers(dense, windows)
    for folder in wanted.folders:
        with tempfile.TemporaryDirectory() as passing:
            plain = Path(passing) / "model.gguf"
            write_gguf(folder, plain, "F32")
            file = gguf_file(folder) or plain
            floats = reference if folder == dense else by_transformers(folder, windows)
            ours, theirs = (
                perplexity(windows, floats),
                perplexity(windows, by_llama(LlamaContext(file, wanted.length), windows)),
            )
            pairs = list(zip(reference, floats, strict=True))
            divergence = torch.cat([(p.exp() * (p - q)).sum(-1) for p, q in pairs]).mean()
            same = torch.cat([(p.argmax(-1) == q.argmax(-1)).float() for p, q in pairs]).mean()
            print(
                f"{folder.name}: perplexity {ours:.4f}, by llama.cpp {theirs:.4f} ({theirs / ours - 1:+.2%})", end="; "
            )
            print(f"divergence {divergence:.5f}, same top token {same:.2%}", flush=True)
            if file != plain:
                floats_there = perplexity(windows, by_llama(LlamaContext(plain, wanted.length), windows))
                print(
                    f"  its floats as F32 by llama.cpp: {floats_there:.4f} ({floats_there / ours - 1:+.2%})",
                    flush=True,
                )
            if wanted.server:
                ids = windows[0][:128]
                for name, (prompt, one) in (("server", by_server(file, ids)), ("engine", by_engine(file, ids))):
                    print(f"  {name}: pp 128 {128e3 / prompt:.0f}, tg {1e3 / one:.1f} tokens a second", flush=True)


if __name__ == "__main__":
    main()
