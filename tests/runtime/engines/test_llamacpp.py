"""The engine llamacpp: what it times is what transformers computes, and what it cannot run is refused by name."""

from pathlib import Path

import pytest

from sparsebench import environment
from sparsebench.errors import ParityError, UnsupportedError
from sparsebench.runtime import Setting, Workload, check_model, engine_refusal
from sparsebench.runtime.engines import llamacpp as engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.measure import measure_memory, measure_pair
from sparsebench.runtime.workload import draw_prompt
from tests.models.test_gguf_writer import ABSENT, tiny
from tests.steps.quantize.test_gguf import quantized

LLAMA = {"model_type": "llama", "hidden_size": 64}


def setting(processes: int = 1, **workload: int) -> Setting:
    asked = Workload(**{"prompt": 12, "generate": 4, **workload})
    return Setting("llamacpp", 1, asked, samples=4, processes=processes, phase_seconds=0.2, timeout_seconds=100)


@pytest.mark.long
def test_a_file_is_timed_beside_the_dense_model_in_forks_with_several_threads(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    dense = tiny("llama", tmp_path / "dense")
    quantized(dense, tmp_path / "q8", type="Q8_0")
    result = measure_pair(dense, tmp_path / "q8", "decoder", setting(processes=2))
    phases = [phase.phase for phase in result.phases if phase.side == "variant"]
    assert phases == ["load", "prefill", "decode", "generate"]
    assert result.parity is not None and not result.parity.wraps_only and "Q8_0" in result.kernel
    assert any("compiled for" in note for note in result.notes)
    memory = measure_memory(tmp_path / "q8", "decoder", setting())
    assert 0 < memory.per_rank[0].tensor_bytes < 1.1 * (tmp_path / "q8" / "model.gguf").stat().st_size


def test_a_wrong_file_is_found_by_its_logits(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    dense, other = tiny("llama", tmp_path / "dense"), tiny("llama", tmp_path / "other", rms_norm_eps=0.1)
    source, wrong = (SavedModel(folder, "decoder") for folder in (dense, other))
    prompt = draw_prompt({"vocab_size": 96}, Workload(prompt=40))
    running = engine.LlamaCpp()
    running.prepare([source, wrong])
    assert running.parity(source, prompt).relative_l2 < 0.01
    running.files[dense, "float32"] = running.files[other, "float32"]
    with pytest.raises(ParityError, match="differs"):
        running.parity(source, prompt)


@pytest.mark.parametrize(
    "config, encoding, workload, named",
    [
        (LLAMA, "int8", {}, "int8"),
        ({"model_type": "t5"}, "float", {}, "t5"),
        (LLAMA, "float", {"batch": 2}, "one sequence"),
    ],
)
def test_what_it_cannot_run_is_refused(
    config: dict[str, object], encoding: str, workload: dict[str, int], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(environment.versions(), "xllamacpp", "2026.10.0")
    refusal = engine_refusal(config, encoding, setting(**workload))
    assert refusal is not None and named in refusal.reason and refusal.way_out


def test_where_the_package_is_missing_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(environment.versions(), "xllamacpp", "absent")
    with pytest.raises(UnsupportedError, match="xllamacpp") as caught:
        check_model(LLAMA, setting())
    assert "pip install" in str(caught.value.hint)


def test_an_encoder_is_timed_by_its_forward_pass(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    source = SavedModel(tiny("bert", tmp_path / "dense"), "encoder")
    running, prompt = engine.LlamaCpp(), draw_prompt({"vocab_size": 96}, Workload(prompt=40))
    running.prepare([source])
    assert running.parity(source, prompt).relative_l2 < 0.01
    (forward,) = running.load(source, 44, False).phases(prompt, 4)
    forward.begin()
    forward.step()
    assert forward.name == "forward" and "bert" in running.kernel
