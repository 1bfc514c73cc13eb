"""Architectures that something cannot do are refused by name, with the reason and a way out, before anything is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench import sources
from sparsebench.benchmarks import ScoredModel, TaskSpec, score
from sparsebench.errors import UnsupportedError
from sparsebench.models.files.quantized import Scheme, encoding_of
from sparsebench.models.shape.topology import NOT_REPLAYED, STATE_SPACE, refuse_replay, refuse_text
from sparsebench.plan.single import prepare_single
from sparsebench.runtime import Setting, Workload, check_supported


@pytest.mark.parametrize("kind", ["albert", "falcon_mamba", "jamba", "led", "longformer", "mamba", "whisper"])
def test_who_cannot_be_calibrated_is_told_why_and_what_to_choose(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind) as raised:
        refuse_replay({"model_type": kind})
    assert NOT_REPLAYED[kind] in raised.value.message and "magnitude" in str(raised.value.hint)
    refuse_replay({"model_type": "mixtral"})


@pytest.mark.parametrize(
    ("engine", "config", "why"),
    [
        *(("deepspeed", {"model_type": kind}, f"{kind} .* 2 ranks") for kind in ("falcon", "gpt_oss", "llama4_text")),
        (
            "deepspeed",
            {"model_type": "llama", "per_layer_config": {"1": {"num_attention_heads": 3}}},
            "per_layer_config",
        ),
        ("deepspeed", {"model_type": "t5", "num_heads": 1}, "whole heads"),
        ("hf", {"model_type": "llama"}, "hf engine does not run at 2 ranks"),
    ],
)
def test_who_cannot_be_sharded_is_told_so_at_two_ranks_only(engine: str, config: dict[str, Any], why: str) -> None:
    family: Any = "encoder-decoder" if config["model_type"] == "t5" else "decoder"
    with pytest.raises(UnsupportedError, match=why):
        check_supported(config, family, Setting(engine, 2, Workload(1, 4, 2)))
    check_supported(config, family, Setting(engine, 1, Workload(1, 4, 2)))
    check_supported({"model_type": "t5", "num_heads": 3}, "encoder-decoder", Setting("deepspeed", 2, Workload(1, 4, 2)))


@pytest.mark.parametrize("kind", STATE_SPACE)
def test_the_sparse_engine_refuses_weights_that_are_read_past_their_layers(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind):
        check_supported({"model_type": kind}, "decoder", Setting("sparse", 1, Workload(1, 4, 2)))


@pytest.mark.parametrize("engine", ["hf", "sparse", "deepspeed"])
def test_a_model_of_audio_is_neither_timed_nor_scored(engine: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="whisper"):
        check_supported({"model_type": "whisper"}, "encoder-decoder", Setting(engine, 1, Workload(1, 4, 2)))
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(UnsupportedError, match="whisper"):
        score(ScoredModel(tmp_path, "encoder-decoder"), [TaskSpec("boolq")], sources.Cache(), lambda *found: None)


@pytest.mark.parametrize(("check", "kind"), [(refuse_text, "whisper"), (refuse_replay, "mamba")])
def test_a_model_is_refused_before_its_weights_are_fetched(
    check: Callable[[Any], None], kind: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    # There are no weights, which fetching would refuse with another error.
    with pytest.raises(UnsupportedError, match=kind):
        prepare_single(str(tmp_path), "decoder", "auto", True, check)


@pytest.mark.parametrize("said", ["gptq", {"quant_method": "gptq"}])
def test_a_quantization_of_others_is_refused_by_its_method(said: object) -> None:
    with pytest.raises(UnsupportedError, match="by gptq"):
        encoding_of({"quantization_config": said})


@pytest.mark.parametrize(
    ("scheme", "packing"),
    [
        (Scheme(3, None), "pack-quantized"),
        (Scheme(16, 64), "pack-quantized"),
        (Scheme(4.0, 64), "pack-quantized"),  # type: ignore[arg-type]
        (Scheme(4, "64"), "pack-quantized"),  # type: ignore[arg-type]
        (Scheme(4, -1), "pack-quantized"),
        (Scheme(8, None), "int-quantized"),
    ],
)
def test_a_quantization_in_our_form_that_we_do_not_write_is_refused(scheme: Scheme, packing: str) -> None:
    with pytest.raises(UnsupportedError, match="only its own int8 and int4"):
        encoding_of({"quantization_config": {**scheme.config([]), "format": packing}})
    assert encoding_of({"quantization_config": Scheme(4, 64).config([])}) == "int4"
