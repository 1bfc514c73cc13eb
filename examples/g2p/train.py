"""Trains the quickstart's encoder-decoder: a small T5 that turns an English spelling into phonemes, on CMUdict.

    OMP_NUM_THREADS=1 nice -n 5 python examples/g2p/train.py --out examples/g2p/model

About an hour on one core. Interrupted, the same command goes on from its last checkpoint, with the same result. With ``--words
out/g2p-words.jsonl`` it writes the words that it trains on, for examples/g2p-recovery.yaml, and trains nothing.
examples/g2p/words.jsonl, with which the quickstart recovers a pruned model, has 12,000 of them (``--count 12000``).
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from sparsebench import sources
from sparsebench.benchmarks import cmudict

SEED = 0
STEPS = 9000
WARMUP = 200
DECAY = 0.25
"""The share of the steps, the last ones, in which the learning rate falls to zero."""
PEAK = 1e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
BATCH = 1600
"""Tokens in a batch, padding and both sides counted: about 90 words."""
EVERY = 250
"""Steps between checkpoints."""
LONGEST = 32
"""Phonemes that the model may say; the longest entry of CMUdict has 28."""
SHAPE = {"d_model": 192, "d_ff": 512, "d_kv": 48, "num_heads": 4, "num_layers": 4, "num_decoder_layers": 2}

Pair = tuple[list[int], list[int]]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter (lower case) and one a phoneme (upper case, parted by spaces).

    `<s>` before a spelling shows where it begins: T5 knows only distances.
    """
    entries = ["<pad>", "</s>", "<unk>", "<s>", *string.ascii_lowercase, "'", "-", ".", *cmudict.PHONEMES]
    core = Tokenizer(models.WordLevel({entry: place for place, entry in enumerate(entries)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[A-Z]+|[^A-Z]"), "isolated")]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def network(words: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """The untrained model, seeded."""
    torch.manual_seed(SEED)
    config = T5Config(
        vocab_size=len(words),
        dropout_rate=0.0,  # seven epochs are too few to learn the words by heart
        feed_forward_proj="relu",
        relative_attention_num_buckets=64,
        relative_attention_max_distance=48,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **SHAPE,
    )
    return T5ForConditionalGeneration(config)


def part(name: cmudict.Split) -> list[cmudict.Word]:
    """The words of one part of CMUdict."""
    return cmudict.split(cmudict.read(sources.fetch(sources.parse(cmudict.SOURCE), sources.Cache())), name)


def pairs(words: PreTrainedTokenizerFast, chosen: list[cmudict.Word]) -> list[Pair]:
    """Token ids of each spelling with each of its pronunciations."""
    both = [(word.spelling, " ".join(spoken)) for word in chosen for spoken in word.pronunciations]
    spelt, spoken = (list(side) for side in zip(*both, strict=True))
    given, wanted = words(spelt)["input_ids"], words(spoken, add_special_tokens=False)["input_ids"]
    return [(row, [*target, words.eos_token_id]) for row, target in zip(given, wanted, strict=True)]


def batches(data: list[Pair], epoch: int) -> Iterator[list[Pair]]:
    """One epoch: shuffled, batches of like lengths, at most BATCH tokens each with padding, in random order.

    The first goes from short words to long ones: which letter makes which phoneme is soon found in short ones.
    """
    dice = random.Random(SEED + epoch)
    rows = sorted(dice.sample(data, len(data)), key=lambda pair: (len(pair[0]), len(pair[1])))
    cut: list[list[Pair]] = [[]]
    for row in rows:
        grown = [*cut[-1], row]
        width = max(len(pair[0]) for pair in grown) + max(len(pair[1]) for pair in grown)
        if cut[-1] and width * len(grown) > BATCH:
            cut.append([row])
        else:
            cut[-1] = grown
    if epoch:
        dice.shuffle(cut)
    yield from cut


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """(rows, longest) int64."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def loss(model: T5ForConditionalGeneration, batch: list[Pair], smoothing: float) -> torch.Tensor:
    """Mean cross-entropy of a phoneme, in nats; products in bfloat16, weights and sums in float32."""
    given = padded([pair[0] for pair in batch], 0)
    wanted = padded([pair[1] for pair in batch], -100)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=given, attention_mask=(given != 0).long(), labels=wanted).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=-100, label_smoothing=smoothing
    )


def rate(step: int, steps: int) -> float:
    """The learning rate's share of its peak: a linear rise, a plateau, a linear fall to zero."""
    return min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))


def slowness(name: str) -> float:
    """A weight's share of the rate: T5 keeps attention's scale, one over the root of the width, in its query weights.

    At the others' rate they outgrow it: after two epochs each attention looked at one letter only, and the validation
    loss was 0.86, where it is 0.41 now.
    """
    return SHAPE["d_kv"] ** -0.5 if ".q." in name else 1.0


@torch.no_grad()
def validation(model: T5ForConditionalGeneration, data: list[Pair]) -> float:
    """Mean cross-entropy of a phoneme over the validation part, without smoothing."""
    model.eval()
    counted = [(float(loss(model, batch, 0.0)), sum(len(pair[1]) for pair in batch)) for batch in batches(data, 0)]
    model.train()
    return sum(value * count for value, count in counted) / sum(count for _, count in counted)


def train(out: Path, steps: int) -> T5ForConditionalGeneration:
    """The trained model; every EVERY steps all that is needed to go on lies beside ``out``."""
    words = tokenizer()
    data, held = pairs(words, part("train")), pairs(words, part("valid"))
    model = network(words).train()
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight], "lr": PEAK * slowness(name), "weight_decay": WEIGHT_DECAY * (weight.dim() == 2)}
            for name, weight in model.named_parameters()
        ],
        betas=(0.9, 0.98),
        fused=True,
    )
    kept = out.with_name(f"{out.name}.checkpoint.pt")
    step, epoch, place, spent = 0, 0, 0, 0.0
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        step, epoch, place, spent = state["step"], state["epoch"], state["place"], state["spent"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(data):,} pairs, from step {step}", flush=True
    )
    since, seen = time.monotonic(), []
    order = list(batches(data, epoch))
    while step < steps:
        if place == len(order):
            epoch, place = epoch + 1, 0
            order = list(batches(data, epoch))
        for group, (name, _) in zip(optimizer.param_groups, model.named_parameters(), strict=True):
            group["lr"] = PEAK * slowness(name) * rate(step, steps)
        value = loss(model, order[place], SMOOTHING)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, place = step + 1, place + 1
        seen.append(value.item())
        if step % EVERY == 0 or step == steps:
            now = time.monotonic()
            spent, since = spent + now - since, now
            line = {
                "step": step,
                "epoch": round(epoch + place / len(order), 2),
                "loss": round(sum(seen) / len(seen), 4),
            }
            print(json.dumps({**line, "valid": round(validation(model, held), 4), "seconds": round(spent)}), flush=True)
            seen = []
            state = {"step": step, "epoch": epoch, "place": place, "spent": spent}
            state |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "random": torch.get_rng_state()}, kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
    return model.eval()


def save(model: T5ForConditionalGeneration, out: Path, dtype: str) -> None:
    """The folder that transformers loads: weights in ``dtype``, tokenizer, greedy generation."""
    words = tokenizer()
    model.generation_config = GenerationConfig(
        max_new_tokens=LONGEST, num_beams=1, do_sample=False, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0
    )
    model.to(getattr(torch, dtype)).save_pretrained(out)
    words.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, help="the model's folder")
    wanted.add_argument("--words", type=Path, help="a file for the training words")
    parser.add_argument("--count", type=int, help="how many of them, drawn at random; default: all")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the saved weights")
    arguments = parser.parse_args()
    if arguments.words:
        arguments.words.parent.mkdir(parents=True, exist_ok=True)
        with arguments.words.open("w") as file:
            for word in part("train")[: arguments.count]:
                entry = {"word": word.spelling, "sounds": " ".join(word.pronunciations[0])}
                file.write(json.dumps(entry) + "\n")
        return
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save(train(arguments.out, arguments.steps), arguments.out, arguments.dtype)


if __name__ == "__main__":
    main()
