"""Models that bring code: by ``auto_map``, pickles, adapters, modules, kernels and templates."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studies.hostile import benign
from studies.hostile.harmless import FEW, HALF, calibrate, pairs, score, text
from studies.hostile.registry import case
from studies.hostile.sandbox import UP, Box, Step

_MODULE = """
open({marker!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast
class Config(LlamaConfig): pass
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
def generate(*args, **kwargs): open({marker!r}, "w").close()
"""


class Payload:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def _coded(box: Box, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A model with ``hostile.py`` beside it."""
    model = box.model(config, **changes)
    for name in ("hostile.py", "modeling_hostile.py", "configuration_hostile.py", "tokenization_hostile.py"):
        (model / name).write_text(_MODULE.format(marker=str(box.marker)))
    return model


def _edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


def _load(box: Box, model: Path) -> Iterator[Step]:
    """Let transformers load the model with its tokenizer."""
    yield calibrate(box, model, text(box.input / "text.jsonl"))


_AUTO = {
    "AutoConfig": "hostile.Config", "AutoModel": "hostile.Model", "AutoModelForCausalLM": "hostile.Model",
    "AutoTokenizer": [None, "hostile.Tokenizer"],
}  # fmt: skip
_REMOTE = {key: f"stranger/code--{value}" for key, value in _AUTO.items() if isinstance(value, str)}


@case("auto_map in config.json", {
    "known type": {"auto_map": _AUTO},
    "unknown type": {"auto_map": _AUTO, "model_type": "hostile"},
    "type missing": {"auto_map": _AUTO, "model_type": None},
    "code elsewhere": {"auto_map": _REMOTE, "model_type": "hostile"},
    "trust_remote_code": {"auto_map": _AUTO, "model_type": "hostile", "trust_remote_code": True},
})  # fmt: skip
def auto_map(box: Box, changes: dict[str, Any]) -> Iterator[Step]:
    model = _coded(box)
    _edit(model / "config.json", **changes)
    words = ("--family", "decoder")
    yield calibrate(box, model, text(box.input / "text.jsonl"), *words)


@case("auto_map in config.json, measured")
def auto_map_measured(box: Box) -> Iterator[Step]:
    model = _coded(box, auto_map=_AUTO)
    yield box.do("measure", model, "--engine", "hf", *FEW, like="hf")


@case("auto_map of an encoder, scored", {"known type": "bert", "unknown type": "hostile"})
def auto_map_scored(box: Box, kind: str) -> Iterator[Step]:
    model = _coded(box, benign.BERT)
    _edit(model / "config.json", auto_map=_AUTO, model_type=kind)
    step = score(box, model, pairs(box.input / "pairs.jsonl"))
    yield box.do(*step.words, "--family", "encoder")


@case("auto_map beside the model", {
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["hostile.Tokenizer", "hostile.Tokenizer"]}},
    "tokenizer_config.json, unknown class": {
        "auto_map": {"AutoTokenizer": ["hostile.Tokenizer", None]}, "tokenizer_class": "Tokenizer",
    },
    "processor_config.json": {"auto_map": {"AutoProcessor": "hostile.Tokenizer"}, "processor_class": "Tokenizer"},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "hostile.Tokenizer"}},
    "generation_config.json": {"auto_map": {"AutoConfig": "hostile.Config"}, "custom_generate": "."},
})  # fmt: skip
def auto_map_beside(box: Box, changes: dict[str, Any]) -> Iterator[Step]:
    model = _coded(box)
    for name in ("tokenizer_config", "processor_config", "preprocessor_config", "generation_config"):
        if name.startswith(("tokenizer", "generation")) or "processor_class" in changes or "Image" in str(changes):
            _edit(model / f"{name}.json", **changes)
    yield from _load(box, model)


@case("custom_generate in the model")
def custom_generate(box: Box) -> Iterator[Step]:
    model = _coded(box, custom_generate=".")
    (model / "custom_generate").mkdir()
    (model / "custom_generate/generate.py").write_text(_MODULE.format(marker=str(box.marker)))
    (model / "custom_generate/requirements.txt").write_text("hostile\n")
    _edit(model / "generation_config.json", custom_generate=".")
    yield box.do("measure", model, "--engine", "hf", *FEW, like="hf")


@case("a kernel from the hub", {
    "attention": {"attn_implementation": "stranger/kernels"},
    "attention of its own": {"_attn_implementation": "stranger/kernels:hostile"},
    "attention, remembered": {"_attn_implementation_internal": "stranger/kernels"},
    "experts": {"experts_implementation": "stranger/kernels", "_experts_implementation": "stranger/kernels"},
    "kernels of layers": {"use_kernels": True, "kernel_config": {"kernel_mapping": {"RMSNorm": "stranger/kernels:hostile"}}},
})  # fmt: skip
def kernel(box: Box, changes: dict[str, Any]) -> Iterator[Step]:
    yield from _load(box, box.model(**changes))


@case("an adapter", {"of the hub": "stranger/base", "of a folder outside": "OUTSIDE", "here": "."})
def adapter(box: Box, base: str) -> Iterator[Step]:
    model = _coded(box)
    base = base.replace("OUTSIDE", str(box.outside))
    named = {
        "auto_mapping": {"base_model_class": "Model", "parent_library": "hostile"},
        "base_model_name_or_path": base,
    }
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", **named}))
    (model / "adapter_model.safetensors").write_bytes(benign.safetensors({"x": (1,)}))
    yield from _load(box, model)


@case("modules.json names a class", {
    "of the model": "hostile.Model", "of the system": "os.system", "of a package": "sentence_transformers.models.Transformer",
})  # fmt: skip
def modules(box: Box, kind: str) -> Iterator[Step]:
    model = _coded(box, benign.BERT)
    (model / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    yield score(box, model, pairs(box.input / "pairs.jsonl"))


@case("modules.json leads out", {"../": f"{UP}/outside", "absolute": "OUTSIDE"})
def modules_out(box: Box, path: str) -> Iterator[Step]:
    model = box.model(benign.BERT)
    (box.outside / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, "note": box.secret}))
    path = path.replace("OUTSIDE", str(box.outside))
    kinds = [("", "Transformer"), (path, "Pooling")]
    found = [
        {"idx": place, "name": str(place), "path": where, "type": f"sentence_transformers.models.{kind}"}
        for place, (where, kind) in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(found))
    yield score(box, model, pairs(box.input / "pairs.jsonl"))


def _pickled(box: Box, archive: bool) -> bytes:
    """A pickle with a payload, bare or in the archive that torch writes."""
    import io

    bare = pickle.dumps({"model.norm.weight": Payload(box.marker)}, protocol=2)
    if not archive:
        return bare
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("archive/data.pkl", bare)
        packed.writestr("archive/version", "3\n")
        packed.writestr("archive/byteorder", "little")
    return file.getvalue()


@case("a pickle in place of weights", {
    "as torch archives it": ("pytorch_model.bin", True), "bare": ("pytorch_model.bin", False),
    "called safetensors": ("model.safetensors", True), "bare, called safetensors": ("model.safetensors", False),
})  # fmt: skip
def pickled(box: Box, how: tuple[str, bool]) -> Iterator[Step]:
    model = benign.model(box.input / "model", weights=False)
    (model / how[0]).write_bytes(_pickled(box, how[1]))
    yield box.do("apply", model, HALF, "--out", box.out / "pruned", like="calibrate")


@case("a pickle named by an index")
def pickled_shard(box: Box) -> Iterator[Step]:
    model = benign.model(box.input / "model", weights=False)
    (model / "pytorch_model-00001-of-00001.bin").write_bytes(_pickled(box, True))
    named = {"weight_map": {"model.norm.weight": "pytorch_model-00001-of-00001.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(named))
    yield box.do("apply", model, HALF, "--out", box.out / "pruned", like="calibrate")


@case("a pickle named by the safetensors index")
def pickle_in_index(box: Box) -> Iterator[Step]:
    model = benign.sharded(box.input / "model", dict.fromkeys(benign.llama_shapes(), "pytorch_model.bin"))
    (model / "pytorch_model.bin").write_bytes(_pickled(box, True))
    yield from _load(box, model)


@case("pickles beside the weights")
def pickles_beside(box: Box) -> Iterator[Step]:
    model = box.model()
    names = (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "model.pt",
        "tokenizer.pkl",
    )
    for name in (*names, "consolidated.00.pth", "adapter_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (model / name).write_bytes(_pickled(box, True))
    (model / "global_step1").mkdir()
    (model / "global_step1/mp_rank_00_model_states.pt").write_bytes(_pickled(box, True))
    (model / "latest").write_text("global_step1")
    yield from _load(box, model)
    yield box.do("measure", model, "--engine", "deepspeed", *FEW, like="deepspeed")


@case("a pickle as calibration text", {"pkl": "text.pkl", "pt": "text.pt", "npy": "text.npy"})
def pickled_text(box: Box, name: str) -> Iterator[Step]:
    (box.input / name).write_bytes(_pickled(box, False))
    yield calibrate(box, box.model(), box.input / name)


_TEMPLATES = {
    "that escapes the sandbox": "{{ ().__class__.__base__.__subclasses__() }}"
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "that never ends": "{% for a in range(10**9) %}{% for b in range(10**9) %}x{% endfor %}{% endfor %}",
    "that includes a file": "{% include 'OUTSIDE/secret.txt' %}",
}


@case("a chat template", _TEMPLATES)
def chat_template(box: Box, template: str) -> Iterator[Step]:
    model = box.model()
    template = template.replace("MARKER", str(box.marker)).replace("OUTSIDE", str(box.outside))
    _edit(model / "tokenizer_config.json", chat_template=template)
    (model / "chat_template.jinja").write_text(template)
    yield from _load(box, model)


@case("a tokenizer that names files outside")
def tokenizer_files(box: Box) -> Iterator[Step]:
    model = box.model()
    out = str(box.canary)
    _edit(
        model / "tokenizer_config.json",
        vocab_file=out,
        tokenizer_file=out,
        merges_file=out,
        name_or_path=str(box.outside),
    )
    _edit(model / "special_tokens_map.json", additional_special_tokens=[out])
    _edit(model / "config.json", _name_or_path=str(box.outside))
    yield from _load(box, model)


@case(
    "a tokenizer of a class",
    {"of Python": "os.system", "that takes a pickle": "TransfoXLTokenizer", "unknown": "Hostile"},
)
def tokenizer_class(box: Box, name: str) -> Iterator[Step]:
    model = _coded(box)
    (model / "vocab.pkl").write_bytes(_pickled(box, False))
    (model / "vocab.bin").write_bytes(_pickled(box, True))
    _edit(model / "tokenizer_config.json", tokenizer_class=name)
    yield from _load(box, model)


@case("a regular expression that explodes, in a tokenizer")
def tokenizer_regex(box: Box) -> Iterator[Step]:
    model = box.model()
    splitting = {"type": "Split", "pattern": {"Regex": "(a+)+b|(a|a)+c"}, "behavior": "Isolated", "invert": False}
    _edit(model / "tokenizer.json", pre_tokenizer=splitting)
    (box.input / "a.jsonl").write_text(json.dumps({"text": "a" * 4000 + " the cat " * 400}) + "\n")
    yield calibrate(box, model, box.input / "a.jsonl")


@case("quantization that loads code", {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_8bit": True}, "a class": {"quant_method": "hostile.Model"},
    "a list": ["gptq"], "a text": "gptq", "null": None,
})  # fmt: skip
def quantization(box: Box, value: Any) -> Iterator[Step]:
    model = _coded(box)
    _edit(model / "config.json", quantization_config=value)
    yield box.do("inspect", model)
    yield box.do("apply", model, HALF, "--out", box.out / "pruned")
