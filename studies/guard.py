"""What a change of form must not change: planned ids, the tensors that every step writes, and the rows of every view.

    python studies/guard.py write before.json     # at the old commit
    python studies/guard.py compare before.json   # at the new one: prints what differs, exits with 1 if anything does

``--only ids``, ``tensors`` or ``views`` takes one of the three; ``--match TEXT`` the cases whose names hold TEXT. Run both
with one thread (``OMP_NUM_THREADS=1``) and the same libraries on the same kind of processor: sums are rounded by order.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sparsebench.errors import SparsebenchError  # noqa: E402

Digests = dict[str, str]


def digest(*parts: bytes | str) -> str:
    """Return the first 16 hexadecimal digits of the parts' sha256."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
        total.update(b"\0")
    return total.hexdigest()[:16]


# Planned ids


def planned_ids(match: str, scratch: Path) -> Digests:
    """Return a digest of the sorted cell ids of every shipped manifest."""
    from sparsebench.plan.preflight import PlanRequest, prepare

    digests = {}
    for path in [ROOT / "quickstart.yaml", ROOT / "experiments.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]:
        if match not in path.name:
            continue
        readable = _with_words(path, scratch) if path.name == "g2p-recovery.yaml" else path
        try:
            cells = prepare(PlanRequest(readable, offline=True)).plan.cells
            digests[path.name] = f"{len(cells)} cells {digest(*sorted(cell.id for cell in cells))}"
        except SparsebenchError as error:
            digests[path.name] = type(error).__name__
    return digests


def _with_words(path: Path, scratch: Path) -> Path:
    """Return a copy of the manifest whose words, which a command makes, are a file of one word."""
    words = scratch / "g2p-words.jsonl"
    words.write_text('{"word": "abbot", "sounds": "AE B AH T"}\n')
    text = path.read_text().replace("path:../out/g2p-words.jsonl", f"path:{words}")
    copy = scratch / path.name
    copy.write_text(text.replace("path:g2p/model", f"path:{ROOT}/examples/g2p/model"))
    return copy


# Written tensors

TRAINING = {"tokens": 512, "length": 32, "batch": 2, "held_out": 0.25, "evaluations": 2}
BASE: Mapping[str, Mapping[str, Any]] = {
    "prune": {"sparsity": 0.5},
    "prune gradual": {"sparsity": 0.5, "frequency": 1, **TRAINING},
    "prune elsa": {"sparsity": 0.5, "interval": 2, **TRAINING},
    "prune mask": {"file": "masks.safetensors"},
    "shrink": {"parameters": 0.7},
    "shrink sleb": {"blocks": 1},
    "shrink influence": {"blocks": 1},
    "shrink angular": {"blocks": 1},
    "shrink first": {"blocks": 1},
    "shrink last": {"blocks": 1},
    "shrink list": {"file": "heads.json"},
    "shrink reap": {"experts": 2},
    "shrink gates": {"parameters": 0.7, **TRAINING},
    "trim list": {"file": "tokens.txt"},
    "recover reconstruct": {"epochs": 1, "tokens": 256},
    "recover": TRAINING,
    "skip": {"share": 0.4},
    "moefy": {"experts": 4, "active": 0.5},
}
"""The settings from which each step's options are varied one by one: by verb and name, else by verb."""
DEEP = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
ENDS = {"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
SHAPES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": (
        "LlamaForCausalLM",
        "bfloat16",
        {**DEEP, **ENDS, "intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "bert": ("BertModel", "float32", {**DEEP, "intermediate_size": 128, "max_position_embeddings": 128}),
    "t5": (
        "T5ForConditionalGeneration",
        "float32",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 96,
            "num_layers": 3,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        "float32",
        {
            **DEEP,
            **ENDS,
            "intermediate_size": 48,
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}
"""transformers' class, precision and configuration of each model that steps are tried on."""
FAMILIES = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder", "mixtral": "decoder"}
EXTRA: Mapping[str, list[dict[str, Any]]] = {
    "sparsegpt, then int8": [{"prune": "sparsegpt", "sparsity": 0.5}, {"quantize": "int8"}],
    "int4 keeps zeros": [{"prune": "wanda", "sparsity": 0.5}, {"quantize": "int4", "rounding": "gptq"}],
    "sparsegpt 2:4": [{"prune": "sparsegpt", "pattern": "2:4"}],
    "magnitude, then blocks": [
        {"prune": "magnitude", "sparsity": 0.5},
        {"recover": "reconstruct", "epochs": 1, "tokens": 256},
    ],
    "wanda, then distill": [{"prune": "wanda", "sparsity": 0.5}, {"recover": "distill", **TRAINING}],
    "shrink, then distill, then int8": [
        {"shrink": "flap", "parameters": 0.8},
        {"recover": "distill", **TRAINING},
        {"quantize": "int8"},
    ],
    "shrink, then prune": [{"shrink": "random", "parameters": 0.8}, {"prune": "wanda", "sparsity": 0.5}],
    "heads alone": [{"shrink": "taylor", "of": "heads", "heads": 2}],
    "neurons alone": [{"shrink": "taylor", "of": "neurons", "neurons": 32}],
    "random blocks": [{"shrink": "random", "blocks": 1}],
    "trim, then int8": [{"trim": "corpus"}, {"quantize": "int8"}],
    "smaller student": [{"recover": "distill", "student": {"layers": 1}, **TRAINING}],
    "two teachers": [{"recover": "distill", "teacher": ["dense", "TEACHER"], **TRAINING}],
    "moefy, then blocks": [
        {"moefy": "coactivation", "experts": 4, "active": 0.5, "router": "learned"},
        {"recover": "reconstruct", "epochs": 1, "tokens": 256},
    ],
}


def written_tensors(match: str, scratch: Path) -> Digests:
    """Return a digest of the tensors and the config of what every step writes on models of a few thousand parameters."""
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    models = {name: _model(name, scratch / name) for name in FAMILIES}
    text = _text(scratch / "text.jsonl")
    digests = {}
    for number, (name, model, recipe) in enumerate(_cases()):
        if match in name:
            digests[name] = _made(models[model], recipe, scratch / f"out-{number}", text, scratch)
    return digests


def _cases() -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Yield a name, a model and a recipe: every step as it is on each model, every option on one of them, and chains."""
    from sparsebench.steps.registry import kinds

    for verb, kind in kinds().items():
        for name, settings in kind.settings().items():
            base = {verb: name, **BASE.get(f"{verb} {name}", BASE.get(verb, {}))}
            for model in FAMILIES:
                yield f"{model}: {verb} {name}", model, [base]
            model = "mixtral" if name == "reap" else "llama"
            for key, value in _options(settings):
                if base.get(key) != value:
                    yield f"{model}: {verb} {name} {key}={value}", model, [{**base, key: value}]
    for name, recipe in EXTRA.items():
        for model in FAMILIES:
            yield f"{model}: {name}", model, recipe


def _options(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield each setting that has a few values with each of them, and each number with one other than the default."""
    for key, field in settings.model_fields.items():
        for kind in typing.get_args(field.annotation) or [field.annotation]:
            if typing.get_origin(kind) is Literal:
                yield from ((key, value) for value in typing.get_args(kind))
        if typing.get_origin(field.annotation) is Literal:
            yield from ((key, value) for value in typing.get_args(field.annotation))
        elif field.annotation is bool:
            yield key, not field.default
        elif field.annotation is float and key != "pattern":
            yield key, field.default / 2 or 0.1
        elif field.annotation is int and field.default > 1:
            yield key, field.default // 2


def _made(model: Path, recipe: list[dict[str, Any]], out: Path, text: Path, scratch: Path) -> str:
    """Return the digest of what the recipe makes; where it is refused, the name of the error's class."""
    import sparsebench

    recipe = [{key: _file(value, model, scratch) for key, value in step.items()} for step in recipe]
    source = {"source": f"path:{text}", "field": "text", "target": "text", "samples": 8, "length": 32}
    if FAMILIES[model.name] != "encoder-decoder":
        del source["target"]
    dense = sparsebench.load(f"path:{model}", family=FAMILIES[model.name])
    try:
        return _digest_of_folder(sparsebench.apply(dense, recipe, out, calibration=source).folder)
    except SparsebenchError as error:
        return f"{type(error).__name__}"
    except Exception as error:
        return f"not ours: {type(error).__name__}: {str(error)[:80]}"


def _file(value: Any, model: Path, scratch: Path) -> Any:
    """Return the file that stands for a name in a recipe, made where it is not there."""
    if value == ["dense", "TEACHER"]:
        return ["dense", f"path:{model}"]
    if value == "masks.safetensors":
        return str(_masks(model, scratch / f"{model.name}-{value}"))
    if value == "tokens.txt":
        path = scratch / value
        path.write_text("the\na\nof\nto\nand\nin\nis\nit\n")
        return str(path)
    if value == "heads.json":
        path = scratch / value
        path.write_text(json.dumps({"neurons": {"0": {"go": [1, 2, 3]}}}))
        return str(path)
    return value


def _masks(model: Path, path: Path) -> Path:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(model / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if "layers.0" in name or "layer.0" in name or "block.0" in name]  # noqa: SIM118
        shapes = {name: weights.get_tensor(name).shape for name in names}
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(shape, generator=generator) > 0.5 for name, shape in shapes.items() if len(shape) == 2}
    save_file(masks, path)
    return path


def _digest_of_folder(folder: Path) -> str:
    from safetensors import safe_open

    parts: list[bytes | str] = [(folder / "config.json").read_text()]
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in sorted(weights.keys()):
                tensor = weights.get_tensor(name).contiguous()
                parts += [name, f"{tensor.dtype} {tuple(tensor.shape)}", _bytes(tensor)]
                count += 1
    return f"{count} tensors {digest(*parts)}"


def _bytes(tensor: Any) -> bytes:
    import torch

    return bytes(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def _text(path: Path) -> Path:
    words = "the a of to and in is it was that cat dog sat ran on mat house tree red blue big small one two".split()
    lines = []
    for line in range(96):
        picked = [words[(line * 7 + place * (3 + line % 5)) % len(words)] for place in range(40)]
        lines.append(json.dumps({"text": " ".join(picked)}))
    path.write_text("\n".join(lines) + "\n")
    return path


def _model(name: str, folder: Path) -> Path:
    import torch
    import transformers

    kind, dtype, settings = SHAPES[name]
    model, config = getattr(transformers, kind), getattr(transformers, kind).config_class
    torch.manual_seed(0)
    model(config(vocab_size=128, pad_token_id=0, **settings)).to(getattr(torch, dtype)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tests.conftest import _tokenizer as tokenizer

    return tokenizer()


# Rows of views


def view_rows(match: str, scratch: Path) -> Digests:
    """Return the number of rows of each view and base table over all published records, and a digest of the rows."""
    import duckdb

    from sparsebench.__main__ import main

    ledger, tables = scratch / "published.duckdb", scratch / "tables"
    for arguments in (["ingest", str(ROOT / "ledger/published"), "--ledger", str(ledger)], _exporting(ledger, tables)):
        sys.argv = ["sparsebench", *arguments]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    digests = {}
    with duckdb.connect() as connection:
        for path in sorted(tables.glob("*.parquet")):
            if match in path.stem:
                columns = [row[0] for row in connection.execute(f"DESCRIBE FROM '{path}'").fetchall()]
                rows = sorted(str(row) for row in connection.execute(f"FROM '{path}'").fetchall())
                digests[path.stem] = f"{len(rows)} rows {digest(*rows)} {' '.join(columns)}"
    return digests


def _exporting(ledger: Path, tables: Path) -> list[str]:
    return ["tables", str(tables), "--to", "parquet", "--ledger", str(ledger)]


PARTS = {"ids": planned_ids, "tensors": written_tensors, "views": view_rows}


def differences(before: Mapping[str, Digests], now: Mapping[str, Digests], match: str) -> Iterator[str]:
    """Yield a line for each case that differs, is new or is gone."""
    for part, cases in now.items():
        earlier = {name: value for name, value in before.get(part, {}).items() if match in name}
        for name in sorted({*cases, *earlier}):
            if cases.get(name) != earlier.get(name):
                yield f"{part}: {name}: was {earlier.get(name)}, is {cases.get(name)}"


def main() -> None:
    """Write what this tree gives, or compare it with what another gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=[*PARTS])
    parser.add_argument("--match", default="")
    asked = parser.parse_args()
    now: dict[str, Digests] = {}
    for part, function in PARTS.items():
        if asked.only in (None, part):
            with tempfile.TemporaryDirectory() as scratch:
                now[part] = function(asked.match, Path(scratch).resolve())
    if asked.what == "write":
        asked.file.write_text(json.dumps(now, indent=1) + "\n")
        return
    lines = list(differences(json.loads(asked.file.read_text()), now, asked.match))
    print("\n".join(lines) or "nothing differs")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
