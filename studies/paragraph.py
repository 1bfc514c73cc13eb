"""What a model writes, dense and made smaller: ``python studies/paragraph.py`` writes ``sparsebench/report/paragraphs.json``.

SmolLM2-135M goes on with one beginning, greedily: the likeliest token at each step, in bfloat16. It is pruned by SparseGPT,
calibrated on 16 passages, or rounded to int4. The report shows the texts beside each other.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from sparsebench import apply, load
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from sparsebench.notebook import SingleModel

OUT = Path(__file__).parents[1] / "sparsebench" / "report" / "paragraphs.json"
MODEL, BEGINNING, TOKENS = "smollm2-135m", "The river rose after a week of rain, and the people of the village", 40
TEXT = {"samples": 16, "length": 512}
"""The calibration: passages of BoolQ."""
RECIPES = {
    "dense": None,
    "int4": {"quantize": "int4"},
    "50% zeros": {"prune": "sparsegpt", "sparsity": 0.5},
    "70% zeros": {"prune": "sparsegpt", "sparsity": 0.7},
    "90% zeros": {"prune": "sparsegpt", "sparsity": 0.9},
}


def continued(model: SingleModel) -> str:
    """What the model writes after the beginning, on one line."""
    tokenizer = load_tokenizer(model.folder)
    network = load_model(model.folder, model.family, "bfloat16").eval()
    tokens = tokenizer(BEGINNING, return_tensors="pt")
    with torch.inference_mode():
        made = network.generate(**tokens, max_new_tokens=TOKENS, do_sample=False, use_cache=True)
    return " ".join(str(tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)).split())


def main() -> None:
    """Make each variant, let it write, and save what it wrote."""
    dense = load(MODEL, dtype="bfloat16")
    texts = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (words, recipe) in enumerate(RECIPES.items()):
            texts[words] = continued(
                apply(dense, recipe, Path(scratch) / str(number), calibration=TEXT) if recipe else dense
            )
            print(f"{words}: {texts[words]}", flush=True)
    shown = {"model": MODEL, "method": "SparseGPT", "beginning": BEGINNING, "tokens": TOKENS, "texts": texts}
    OUT.write_text(json.dumps(shown, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
