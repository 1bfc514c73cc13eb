"""A vocabulary trimmed to a text: what stays, what it saves, and what it changes, on that text and on another.

    OMP_NUM_THREADS=1 python studies/trim.py encoder MODEL [--texts 200] [--counts 1 2 5]
    OMP_NUM_THREADS=1 python studies/trim.py decoder MODEL --dtype bfloat16 [--windows 3] [--counts 1 2 5]

MODEL is any source. The text is BoolQ's passages, which calibration reads by default, the other one CoQA's, which the task
`perplexity` reads. Everything is calculated in float32.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch

from sparsebench import sources
from sparsebench.benchmarks import all_tasks
from sparsebench.benchmarks.perplexity import bits_per_byte_fields, window_losses, windows_of
from sparsebench.benchmarks.running_text import pooled_perplexity
from sparsebench.models.files.text import JOINER, load_tokenizer, original_ids, special_tokens, token_ids
from sparsebench.models.modules.load import load_model
from sparsebench.plan.single import prepare_single
from sparsebench.sources.text import read_texts
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.contract import Context
from sparsebench.steps.registry import kinds
from sparsebench.steps.registry import single as one_step

MB = 1e6


def texts(source: str, *fields: str) -> list[str]:
    """All texts of a source."""
    return [text for (text,) in read_texts(sources.fetch(sources.parse(source), sources.Cache()), *fields).rows]


def trimmed(folder: Path, family: Any, counts: list[int], out: Path) -> list[tuple[int, Path, Any]]:
    """The versions by minimum count, with their folders and evidence."""
    steps = {one_step("trim", "corpus", min_count=count): out / str(count) for count in counts}
    found: list[tuple[int, Path, Any]] = []

    def emit(step: Any, result: Any) -> None:
        if isinstance(result, Exception):
            raise result
        found.append((step.settings.min_count, steps[step], result))

    kinds()["trim"].load()(folder, steps, Context(family), emit)
    return found


def weights(folder: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def encoder(folder: Path, options: argparse.Namespace) -> None:
    """Hidden states of the text's passages, dense and trimmed, and the tokens that another text takes."""
    own = texts(DEFAULT.source, str(DEFAULT.field))[: options.texts]
    other = texts(all_tasks()["perplexity"].data[0], *all_tasks()["perplexity"].fields)
    dense, reader = load_model(folder, "encoder", "float32"), load_tokenizer(folder)
    rows = reader(other, add_special_tokens=False, verbose=False)["input_ids"]
    size, before, missed = weights(folder), sum(map(len, rows)), sum(row.count(reader.unk_token_id) for row in rows)
    print(f"dense: {dense.config.vocab_size:,} tokens, {size / MB:.2f} MB")
    with tempfile.TemporaryDirectory() as out:
        for count, path, evidence in trimmed(folder, "encoder", options.counts, Path(out)):
            model, tokenizer = load_model(path, "encoder", "float32"), load_tokenizer(path)
            far, same = 0.0, 0
            for text in own:
                given = [one(text, return_tensors="pt", truncation=True, max_length=256) for one in (reader, tokenizer)]
                if reader.tokenize(text) != tokenizer.tokenize(text):
                    continue
                with torch.inference_mode():
                    a, b = (each(**ids)[0] for each, ids in zip((dense, model), given, strict=True))
                far, same = max(far, float((a - b).abs().max())), same + 1
            ids = tokenizer(other, add_special_tokens=False, verbose=False)["input_ids"]
            unknown = sum(row.count(tokenizer.unk_token_id) for row in ids)
            print(
                f"min_count {count}: {weights(path) / MB:.2f} MB ({weights(path) / size:.3f}); {evidence.note}; "
                f"{same} of {len(own)} passages the same tokens, outputs within {far:.1e}; "
                f"other text {sum(map(len, ids)) / before - 1:+.2%} tokens, {unknown - missed} more unknown",
                flush=True,
            )


def decoder(folder: Path, options: argparse.Namespace) -> None:
    """Perplexity and bits a byte on either text; the dense model's also as it would be if it could only choose what stays."""
    task = all_tasks()["perplexity"]
    both = {"own": texts(DEFAULT.source, str(DEFAULT.field)), "other": texts(task.data[0], *task.fields)}
    joined = {name: JOINER.join(found) for name, found in both.items()}
    dense, reader = load_model(folder, "decoder", "float32"), load_tokenizer(folder)
    size, whole = weights(folder), {name: len(token_ids(reader, text)) for name, text in joined.items()}
    print(
        f"dense: {len(reader):,} tokens, {size / MB:.2f} MB; {said(dense, reader, joined, whole, whole, options)}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as out:
        for count, path, evidence in trimmed(folder, "decoder", options.counts, Path(out)):
            model, tokenizer = load_model(path, "decoder", "float32"), load_tokenizer(path)
            now = {name: len(token_ids(tokenizer, text)) for name, text in joined.items()}
            rows = torch.tensor(original_ids(path))
            shown = windows_of(token_ids(tokenizer, joined["own"]), 1024).ids[0]
            with torch.inference_mode():
                # The trimmed tokens by their old numbers: what the dense model says of the same tokens.
                old = dense(input_ids=rows[torch.tensor(shown)][None]).logits[0][:, rows]
                new = model(input_ids=torch.tensor(shown)[None]).logits[0]
                target = torch.tensor(shown)[1:, None]
                kept = float(-old[:-1].log_softmax(-1).gather(1, target).mean())
                its = float(-new[:-1].log_softmax(-1).gather(1, target).mean())
            print(
                f"min_count {count}: {weights(path) / MB:.2f} MB ({weights(path) / size:.3f}); {evidence.note}; "
                f"logits of kept tokens within {float((old - new).abs().max()):.1e}; first window: dense over kept tokens "
                f"{math.exp(kept):.5f}, trimmed {math.exp(its):.5f}; {said(model, tokenizer, joined, now, whole, options)}",
                flush=True,
            )


def said(
    model: Any, tokenizer: Any, joined: dict[str, str], now: dict[str, int], whole: dict[str, int], options: Any
) -> str:
    """What a model makes of each text."""
    words = []
    for name, text in joined.items():
        first, _ = special_tokens(tokenizer)
        every = windows_of(token_ids(tokenizer, text), 1024, window_prefix=first)
        part = every.selected(range(len(every.ids))[: options.windows])
        values = window_losses(model, part)
        size = bits_per_byte_fields(tokenizer, text, part, values)
        words.append(
            f"{name} text {now[name] / whole[name] - 1:+.2%} tokens, perplexity {pooled_perplexity(values, part.scored):.4f}, "
            f"bits a byte {size['bits_per_byte']:.5f} ({size['scored_bytes']:,} bytes)"
        )
    return "; ".join(words)


def main() -> None:
    """Print a line for the dense model and one for each version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=["encoder", "decoder"])
    parser.add_argument("model", help="any source of a model")
    parser.add_argument("--dtype", default="auto", help="the precision of the files")
    parser.add_argument("--texts", type=int, default=200, help="passages that an encoder reads")
    parser.add_argument("--windows", type=int, default=3, help="windows of 1,024 tokens that a decoder reads")
    parser.add_argument("--counts", type=int, nargs="*", default=[1, 2, 5])
    options = parser.parse_args()
    model = prepare_single(options.model, options.family, options.dtype, sources.Cache())
    (encoder if options.family == "encoder" else decoder)(model.folder, options)


if __name__ == "__main__":
    main()
