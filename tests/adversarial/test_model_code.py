"""A model's own code is never run, whatever a person or a pipe answers: each verb, on a folder that tries in every way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CODE = 'import os, pathlib\npathlib.Path(os.environ["CANARY"]).touch()\nclass Evil:\n    pass\n'
AUTO = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoFeatureExtractor")
SMALL = ("--dtype", "float32", "--family", "encoder")


def rewrite(path: Path, **keys: object) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | keys))


def evil(original: Path, folder: Path, model_type: str = "bert", tokenizer: str = "EvilTokenizer") -> Path:
    """The model with code of its own in every place that transformers or sentence-transformers would take it from."""
    shutil.copytree(original, folder)
    (folder / "custom_generate").mkdir()
    for name in ("configuration_evil.py", "modeling_evil.py", "tokenization_evil.py", "custom_generate/generate.py"):
        (folder / name).write_text(CODE)
    code = dict.fromkeys(AUTO, "modeling_evil.Evil")
    rewrite(folder / "config.json", model_type=model_type, auto_map=code, _attn_implementation="evil/kernels")
    pair = ["tokenization_evil.Evil", "tokenization_evil.Evil"]
    rewrite(folder / "tokenizer_config.json", tokenizer_class=tokenizer, auto_map={"AutoTokenizer": pair})
    rewrite(folder / "generation_config.json", custom_generate="custom_generate/generate.py")
    rewrite(folder / "preprocessor_config.json", auto_map=code, feature_extractor_type="Evil")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "modeling_evil.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def words(verb: str, model: Path, folder: Path) -> list[object]:
    """A command of this verb that gets as far as it can."""
    pairs = [{"sentence1": f"cat {n}", "sentence2": "dog" * (n % 3 + 1), "score": n} for n in range(6)]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    texts = [
        {"text": f"{word} the cat sat on the mat and the dog ran"} for word in "red blue big small one two".split()
    ]
    (folder / "text.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    manifest = folder / "mine.yaml"
    source = f"models: [{{name: it, source: 'path:{model}', family: encoder}}]"
    manifest.write_text(f"version: 1\n{source}\nbenchmarks: {{encoder: [{{task: stsb_sts}}]}}\n")
    text = f"source: 'path:{folder / 'text.jsonl'}', field: text, samples: 2, length: 8"
    known: dict[str, list[object]] = {
        "inspect": [model, *SMALL],
        "plan": [manifest, "--offline"],
        "apply": [model, "prune: wanda, sparsity: 0.5", *SMALL, "--calibration", text, "--out", folder / "out"],
        "measure": [model, *SMALL, "--engine", "hf", "--samples", 6, "--batch", 1, "--prompt", 8],
        "score": [model, *SMALL, "--task", "stsb_sts", "--data", f"path:{data}"],
        "pack": [model, "--out", folder / "packed"],
    }
    return [verb, *known[verb]]


def yes(tmp_path: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """The command, with a pipe that says yes to everything; asserts that no code of the model's was run."""
    canary = tmp_path / "canary"
    done = subprocess.run(
        [sys.executable, "-m", "sparsebench", *map(str, command)],
        input="yes\n" * 100,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"CANARY": str(canary), "HF_HUB_OFFLINE": "1"},
    )
    assert not canary.exists(), f"{command[0]} ran a model's own code"
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize(
    "verb",
    [
        "inspect",
        "plan",
        *(pytest.param(verb, marks=pytest.mark.long) for verb in ("score", "apply", "measure", "pack")),
    ],
)
def test_a_model_that_transformers_knows_is_read_without_its_code(tiny_bert: Path, tmp_path: Path, verb: str) -> None:
    # AutoTokenizer takes any name of transformers for a tokenizer's: an auto class would ask for consent to code.
    tokenizer = "AutoFeatureExtractor" if verb == "score" else "EvilTokenizer"
    done = yes(tmp_path, *words(verb, evil(tiny_bert, tmp_path / "model", tokenizer=tokenizer), tmp_path))
    assert done.returncode == 0, done.stderr
    if verb != "plan":
        assert "config.json: auto_map" in done.stderr and "modeling_evil.py" in done.stderr
    if verb in ("score", "apply"):
        assert f"`tokenizer_class`: transformers has no tokenizer '{tokenizer}'" in done.stderr
    if verb in ("apply", "pack"):
        made = tmp_path / ("out" if verb == "apply" else "packed")
        assert not list(made.rglob("*.py"))
        assert "evil" not in (made / "config.json").read_text() + (made / "generation_config.json").read_text()
        assert "auto_map" not in (made / "tokenizer_config.json").read_text()
        left = json.loads((made / "sparsebench.json").read_text())["left_out"]
        assert {"tokenizer_config.json: auto_map", "custom_generate/generate.py"} <= set(left)


@pytest.mark.parametrize(
    "verb",
    [
        "apply",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("inspect", "plan", "measure", "score", "pack")),
    ],
)
def test_a_model_that_needs_its_code_is_refused_by_name_where_it_would_run(
    tiny_bert: Path, tmp_path: Path, verb: str
) -> None:
    done = yes(tmp_path, *words(verb, evil(tiny_bert, tmp_path / "model", model_type="evil"), tmp_path))
    if verb in ("inspect", "pack"):  # weights alone need no class
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode
    assert "config.json" in done.stderr and "`model_type`" in done.stderr and "'evil'" in done.stderr
