"""What engines cannot run: engine × model type × capability, each with the reason and the way out.

``EngineInfo`` says what an engine can do; this asks what a model and a setting need of it, before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from sparsebench import devices, environment
from sparsebench.errors import Refusal, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import PER_LAYER, has_classifier, output_family, text_config
from sparsebench.models.files.quantized import FLOAT, encoding_of, scheme_of
from sparsebench.models.files.text import limit_below
from sparsebench.models.gguf_writer import gguf_refusal
from sparsebench.models.modules.skipping import skips_weights
from sparsebench.models.shape.topology import STATE_SPACE, refuse_text
from sparsebench.runtime.engines import EngineInfo, engine_info, engines
from sparsebench.runtime.results import Setting, Workload
from sparsebench.storage import is_packed

NOT_SHARDED = frozenset(
    ("bloom", "falcon", "falcon_mamba", "gpt2", "gpt_oss", "jamba", "llama4", "llama4_text", "mamba", "mamba2",
     "modernbert", "olmo2", "olmoe", "phi3", "phimoe")
)  # fmt: skip
"""Model types that AutoTP cuts wrongly: fused matrices to shapes that are no whole heads, or projections without what
belongs to them (biases and norms over all heads, a router's input, the sizes of a state-space layer)."""
BY_HEADS = ("mt5", "t5", "umt5")
"""Model types in which AutoTP shards every layer by whole heads; in others it cuts at least the feed-forward part."""
ONE_RANK = "measure it at one rank"
ON_CPU = "say `device: cpu`, or --device cpu"
MORE_GPUS = "measure fewer ranks, on a machine with more GPUs, or on several `nodes` of a cluster of Ray's"


def check_supported(config: Mapping[str, Any], family: Family, setting: Setting) -> None:
    """Raise UnsupportedError where a model's config.json alone shows that the engine cannot run it in this setting."""
    check_model(config, setting)
    if refusal := position_refusal(config, family, setting.workload):
        raise refusal.error()


def check_model(config: Mapping[str, Any], setting: Setting) -> None:
    """Raise UnsupportedError as ``check_supported`` does, but not for a workload that is too long for the model."""
    refuse_text(config)
    if has_classifier(config) and config.get("is_encoder_decoder"):
        raise UnsupportedError(
            "the time of an encoder-decoder with a head for classes is not measured",
            "leave it out of `runtime: models`",
        )
    if refusal := engine_refusal(config, encoding_of(config), setting):
        raise refusal.error()
    if scheme := scheme_of(config):
        scheme.check_kernels()


def engine_refusal(config: Mapping[str, Any], encoding: str, setting: Setting) -> Refusal | None:
    """Return why a model with this config.json and weights of this ``encoding`` cannot be run in the setting, if so."""
    reasons = (
        _device_refusals(setting, encoding),
        _ability_refusals(config, encoding, setting),
        _type_refusals(config, setting),
    )
    return next(chain.from_iterable(reasons), None)


def check_folder(folder: Path, family: Family, setting: Setting) -> None:
    """Raise UnsupportedError where a model's folder shows, before it is loaded, that the engine cannot run it."""
    check_supported(Checkpoint(folder).config, family, setting)
    if is_packed(folder):
        if scheme := scheme_of(Checkpoint(folder).config):
            raise UnsupportedError(f"{folder.name}: no engine runs packed {scheme.encoding}", "`sparsebench unpack` it")
        for refusal in _lacking(setting, f"read {folder.name}, which is packed", lambda row: row.reads_packed):
            raise replace(refusal, way_out=f"{refusal.way_out}, or `sparsebench unpack` it").error()


def rank_refusal(setting: Setting, gpu_count: int) -> Refusal | None:
    """Return why the ranks of one machine cannot run on ``gpu_count`` GPUs that torch sees; None where they can."""
    return next(_gpu_refusals(setting, gpu_count, "torch"), None)


def _gpu_refusals(setting: Setting, gpu_count: int, owner: str) -> Iterator[Refusal]:
    if engine_info(setting.engine).cpu_only:
        yield Refusal(f"the {setting.engine} engine runs on a CPU only", ON_CPU)
    if (ranks := setting.ranks_per_node) > gpu_count:
        yield Refusal(f"{ranks} ranks need {ranks} GPUs, but {owner} has {gpu_count}", MORE_GPUS)


def _device_refusals(setting: Setting, encoding: str) -> Iterator[Refusal]:
    package = engine_info(setting.engine).package
    if package and environment.version(package) == "absent":
        way_out = f"pip install {environment.EXTRAS.get(package, package)}"
        yield Refusal(f"the {setting.engine} engine needs {package}, which is not installed", way_out)
    if setting.on_gpu:
        # How many GPUs other nodes have is not known here.
        gpu_count = setting.ranks_per_node if setting.nodes else len(devices.selected_gpus(setting.device))
        yield from _gpu_refusals(setting, gpu_count, f"device {setting.device}")
        if encoding != FLOAT:
            yield Refusal(f"{encoding} weights are run on a CPU only", ON_CPU)


def _ability_refusals(config: Mapping[str, Any], encoding: str, setting: Setting) -> Iterator[Refusal]:
    """Yield what the engine lacks for this model, and what no engine can do."""
    is_quantized, several_ranks = encoding != FLOAT, setting.ranks > 1
    if several_ranks:
        yield from _lacking(setting, f"run at {setting.ranks} ranks", lambda row: row.shards)
    if skips_weights(config):
        if is_quantized:
            yield Refusal("no engine can skip the weights of a quantized model", "score it, or do not quantize it")
        yield from _lacking(setting, "skip weights: it would compute with all of them", lambda row: row.skips_weights)
    if is_quantized:
        yield from _lacking(setting, f"run {encoding} weights", lambda row: encoding in row.encodings)
        if several_ranks:
            yield Refusal(f"{encoding} weights are not run at {setting.ranks} ranks", ONE_RANK)


def _lacking(setting: Setting, does: str, can: Callable[[EngineInfo], bool]) -> Iterator[Refusal]:
    """Yield a refusal that names the engines that ``can``, where the setting's cannot."""
    if not can(engine_info(setting.engine)):
        able = " or ".join(row.name for row in engines().values() if can(row))
        yield Refusal(f"the {setting.engine} engine does not {does}", f"use {able}")


def _type_refusals(config: Mapping[str, Any], setting: Setting) -> Iterator[Refusal]:
    """Yield what the model's type, or a shape in its config.json, rules out with the setting's engine."""
    if not config:  # that of a GGUF file is not known before it is fetched
        return
    model_type, ranks = str(config.get("model_type")), setting.ranks
    if setting.engine == "sparse" and model_type in STATE_SPACE:
        yield Refusal(
            f"the sparse engine cannot run {model_type}: {STATE_SPACE[model_type]}", "measure it with another engine"
        )
    if setting.engine == "llamacpp":
        yield from filter(None, [gguf_refusal(config)])
        if setting.workload.batch > 1:
            yield Refusal("the llamacpp engine runs one sequence at a time", "say `batch: 1`")
    if setting.engine != "deepspeed" or ranks == 1:
        return
    text_settings = text_config(config)
    model_type, heads = str(text_settings.get("model_type")), text_settings.get("num_heads", ranks)
    if config.get(PER_LAYER):
        reason = f"AutoTP counts the same heads in every block, and `{PER_LAYER}` gives blocks their own"
    elif model_type in BY_HEADS and heads < ranks:
        reason = f"AutoTP shares T5 out by whole heads, and {heads} are fewer than ranks"
    else:
        reason = f"AutoTP does not cut a {model_type} right" if model_type in NOT_SHARDED else ""
    if reason:
        yield Refusal(f"{reason}: not measured at {ranks} ranks", ONE_RANK)


def position_refusal(config: Mapping[str, Any], family: Family, workload: Workload) -> Refusal | None:
    """Return why the workload is longer than the model's positions allow; None where it fits."""
    family = output_family(family, config)
    longest = max(workload.prompt, workload.generate + 1) if family == "encoder-decoder" else workload.prompt
    longest += workload.generate if family == "decoder" else 0
    if limit := limit_below(config, longest):
        reason = f"a workload of {longest} tokens does not fit a model of {limit} positions"
        return Refusal(reason, "lower `prompt` or `generate`")
    return None
