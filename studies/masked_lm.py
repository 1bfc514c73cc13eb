"""Pseudo-log-likelihoods in batches beside the naive loop: one masked token at a time, all logits computed.

    OMP_NUM_THREADS=1 python studies/masked_lm.py --tokenizer FOLDER [--sentences 40] [--layers 6] [--width 384]

A random BERT (its speed is a real one's) scores sentences of SciQ; both ways by CPU time, and how far their
log-likelihoods are apart.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from sparsebench import sources
from sparsebench.benchmarks import all_tasks, pll
from sparsebench.benchmarks.encoder import documents


def naive(model: Any, texts: list[pll.PllText], mask: int) -> list[list[float]]:
    """One forward pass a token."""
    found = []
    with torch.inference_mode():
        for text in texts:
            found.append([])
            for place in range(text.begin, text.end):
                ids = torch.tensor([text.ids])
                masked = text.masked(place)
                ids[0, masked.start : masked.stop] = mask
                logits = model(input_ids=ids).logits[0, place].float()
                found[-1].append(float(logits.log_softmax(dim=-1)[text.ids[place]]))
    return found


def main() -> None:
    """Print seconds, their ratio, and the largest difference, for each size of batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="a folder with a masked model's tokenizer")
    parser.add_argument("--sentences", type=int, default=40)
    parser.add_argument("--words", type=int, default=1000, help="the longest sentence, in words")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tokens", type=int, nargs="*", default=[256, 512, 1024, 2048])
    options = parser.parse_args()

    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=options.width, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32, intermediate_size=4 * options.width,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BertForMaskedLM(config).eval()
    reader = pll.PllTokenizer(tokenizer, config.to_dict())
    rows = documents(all_tasks()["sciq_retrieval"], sources.Cache())[: options.sentences]
    texts = [reader.continuation("", " ".join(str(row["question"]).split()[: options.words])) for row in rows]
    scored = sum(text.end - text.begin for text in texts)
    print(f"{len(texts)} sentences, {scored} tokens scored, {config.num_hidden_layers} layers of {config.hidden_size}")
    started = time.process_time()
    slow = naive(model, texts, tokenizer.mask_token_id)
    before = time.process_time() - started
    print(f"one at a time: {before:.1f} s")
    for tokens in options.tokens:
        pll.BATCH_TOKENS = tokens
        started = time.process_time()
        fast = pll.PllScorer(model, tokenizer).score(texts)
        seconds = time.process_time() - started
        apart = max(
            abs(one - other)
            for many, few in zip(slow, fast, strict=True)
            for one, (other, _) in zip(many, few, strict=True)
        )
        print(
            f"batches of {tokens} tokens: {seconds:.1f} s, {before / seconds:.2f} times as fast; apart by {apart:.1e}"
        )


if __name__ == "__main__":
    main()
