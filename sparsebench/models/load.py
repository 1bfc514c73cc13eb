"""Loading with stock transformers, without weights that it would silently make up, and without a model's own code.

Only this module and ``families`` call transformers' loaders.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError, foreign
from sparsebench.models.assemble import assemble
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.families import auto_class, drop_pooler, transformers_config
from sparsebench.models.grouped import experts_of
from sparsebench.models.quantized import FLOAT, QuantizedCheckpoint, encoding_of
from sparsebench.models.safety import refuse_adapter
from sparsebench.models.skipping import install
from sparsebench.models.types import PER_LAYER

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sparsebench.manifest.schema import Family


def load_model(folder: Path, family: Family, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load the model in eval mode on ``device``, in ``dtype`` (``auto``: the checkpoint's).

    Quantized weights are expanded to floats; a model that skips weights gets its masks. An encoder with a
    sequence-classification head is loaded with it, a plain one as AutoModel, and one without pooler weights without a
    pooler. Raises ModelError when weights are missing: transformers would make them up.
    """
    return _loaded(Path(folder), family, auto_class(family, Checkpoint(Path(folder)).config), dtype, device)


def load_masked_lm(folder: Path, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load an encoder with its masked-language-model head, as ``load_model`` does; ``base_model`` is the encoder.

    Raises ModelError as ``load_model`` does: some checkpoints name a head that their files lack.
    """
    from transformers import AutoModelForMaskedLM

    return _loaded(Path(folder), "encoder", AutoModelForMaskedLM, dtype, device)


def load_tagger(folder: Path, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Load an encoder with its token-classification head, in the manner of ``load_masked_lm``."""
    from transformers import AutoModelForTokenClassification

    return _loaded(Path(folder), "encoder", AutoModelForTokenClassification, dtype, device)


def load_expanded(
    folder: Path,
    family: Family,
    dtype: str = "auto",
    prepare: Callable[[Any], object] = lambda model: None,
    kind: Any = None,
) -> PreTrainedModel:
    """Load a quantized folder as floats, layer by layer, by class ``kind``; ``prepare`` may cut the empty model."""
    from sparsebench.models.quantized_linear import expanding

    weights = QuantizedCheckpoint(Path(folder))
    return _assembled(weights, family, dtype, replace=expanding(weights), prepare=prepare, kind=kind)


def load_kernels(
    folder: Path, family: Family, dtype: str = "auto", prepare: Callable[[Any], object] = lambda model: None
) -> PreTrainedModel:
    """Load a quantized folder with layers that multiply its integers; ``prepare`` may cut the empty model.

    Raises UnsupportedError where no kernel takes any of its layers.
    """
    from sparsebench.models import quantized_linear

    weights = QuantizedCheckpoint(Path(folder))
    weights.scheme.check_kernels()
    model = _assembled(weights, family, dtype, replace=quantized_linear.multiplying(weights), prepare=prepare)
    if not any(isinstance(module, quantized_linear.QuantizedLinear) for module in model.modules()):
        raise UnsupportedError(
            f"{folder}: no {weights.scheme.encoding} kernel takes a matrix of this model's", "score it, or use int8"
        )
    return model


def _assembled(weights: Checkpoint, family: Family, dtype: str, **ways: Any) -> PreTrainedModel:
    """Assemble a model, with the generation settings that transformers reads beside weights and configuration."""
    from transformers import GenerationConfig

    model = assemble(weights, family, dtype, **ways)
    generation = weights.folder / "generation_config.json"
    if generation.is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_dict(bounded.read_object(generation))
    return model


def _loaded(folder: Path, family: Family, kind: Any, dtype: str, device: str) -> PreTrainedModel:
    import torch

    refuse_adapter(folder)
    stated = Checkpoint(folder).config
    if encoding_of(stated) != FLOAT:
        return _moved(install(load_expanded(folder, family, dtype, kind=kind), stated), device)
    if experts_of(stated):
        return _moved(_moefied(folder, family, dtype, kind), device)
    if stated.get(PER_LAYER):
        # Tensor by tensor: transformers refuses such a config.
        return _moved(install(_assembled(Checkpoint(folder), family, dtype, kind=kind), stated), device)
    from transformers.utils.logging import disable_progress_bar

    config = transformers_config(stated, str(folder / "config.json"))
    disable_progress_bar()  # it would show "Loading weights" on stderr for seconds, beside our own display
    precision = dtype if dtype == "auto" else getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": precision, "local_files_only": True, "output_loading_info": True}
    with foreign(f"{folder}: transformers cannot load it as {family}", "check family and files"):
        model, info = kind.from_pretrained(str(folder), config=config, trust_remote_code=False, **options)
    if missing := drop_pooler(model, set(info["missing_keys"]), kind):
        names = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
        raise ModelError(
            f"{folder}: {len(missing)} weights are missing ({names})",
            "the files are incomplete, or the family or `architectures` in config.json is not the checkpoint's",
        )
    return _moved(install(model.eval(), stated), device)


def _moved(model: Any, device: str) -> PreTrainedModel:
    """Return the model on ``device``. On a CPU its weights stay pages of the file, which the system may drop."""
    moved: PreTrainedModel = model.to(device)
    return moved


def _moefied(folder: Path, family: Family, dtype: str, kind: Any) -> PreTrainedModel:
    """Load a model with grouped neurons tensor by tensor: transformers' loader would complain about extra tensors."""
    from sparsebench.models import moefied

    checkpoint = Checkpoint(folder)
    model: PreTrainedModel = moefied.install(_assembled(checkpoint, family, dtype, kind=kind), checkpoint)
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer by a class of transformers.

    A folder with a tokenizer.json does not need the class that it names; if transformers lacks that, stderr gets a
    note. Raises ModelError for a folder without a tokenizer, or one that needs a class that transformers lacks.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder}: it has no tokenizer", "copy the model's tokenizer files beside its weights")
    unknown = _unknown_tokenizer(folder)
    if unknown and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{unknown}, and code of a model's own is never run",
            "copy a tokenizer.json beside it, or install a version of transformers that has the class",
        )
    if unknown:
        print(f"{unknown}: tokenizer.json is read without it", file=sys.stderr)
    kind: Any = PreTrainedTokenizerFast if unknown else AutoTokenizer
    stated = bounded.read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    # transformers reads the model's type from config.json, and refuses one with widths that differ from block to block.
    typed = stated.get(PER_LAYER) and not unknown
    told = {"config": transformers_config(stated, str(folder / "config.json"))} if typed else {}
    with foreign(f"{folder}: its tokenizer cannot be loaded", "fetch its files again, or install what it names"):
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **told
        )
    return tokenizer


def _unknown_tokenizer(folder: Path) -> str:
    """Return which key of which file names a tokenizer class that transformers lacks; empty where none does.

    ``AutoTokenizer`` would accept any name in transformers, even an auto class, whose loader asks for consent.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
    from transformers.utils import DummyObject

    for path in (folder / "tokenizer_config.json", folder / "config.json"):
        stated = bounded.read_object(path).get("tokenizer_class") if path.is_file() else None
        if stated:
            tried = (tokenizer_class_from_name(str(stated) + end) for end in ("", "Fast"))
            found = next((one for one in tried if one is not None), None)
            # A dummy stands for a class whose package is not installed; its error names the package.
            if isinstance(found, DummyObject) or (
                isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
            ):
                return ""
            return f"{path}: `tokenizer_class`: transformers has no tokenizer {stated!r}"
    return ""


def load_gguf(file: Path, family: Family, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file by transformers: the model, dequantized, and the file's tokenizer.

    Nothing beside the file is read: an adapter there would replace the model. Raises ModelError for a file that
    transformers cannot load and for missing weights.
    """
    import torch
    from transformers import AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    # Without `dequantize` the model counts as quantized and cannot be saved.
    how: dict[str, Any] = {"dtype": getattr(torch, dtype), "quantization_config": GgufConfig(dequantize=True)}
    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / file.name).symlink_to(file.resolve())
        with foreign(f"{file}: transformers cannot load it as {family}", "check the family, or fetch the file again"):
            model, info = auto_class(family, {}).from_pretrained(
                alone, trust_remote_code=False, output_loading_info=True, **where, **how
            )
            tokenizer = AutoTokenizer.from_pretrained(alone, trust_remote_code=False, **where)
    if missing := sorted(set(info["missing_keys"]) - set(model.all_tied_weights_keys)):
        # transformers makes such weights up.
        wrong = f"{file}: {len(missing)} weights are missing (the first is {missing[0]})"
        raise ModelError(wrong, "its header does not fit its tensors: fetch the file again")
    return model, tokenizer


def cache_name(model: Any) -> str:
    """Return the name of the argument for the key-value cache of a model's forward; transformers 5.24 renamed it."""
    import inspect

    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
