"""The engine llamacpp: what it times is what transformers computes, and what it cannot run is refused by name."""

from pathlib import Path

import pytest

from sparsebench.errors import ParityError
from sparsebench.runtime import Setting, Workload
from sparsebench.runtime.engines import llamacpp as engine
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.measure import measure_memory, measure_pair
from sparsebench.runtime.workload import draw_prompt
from tests.models.test_gguf_writer import ABSENT, tiny
from tests.steps.quantize.test_gguf import quantized


def setting(processes: int = 1) -> Setting:
    return Setting(
        "llamacpp", 1, Workload(1, 12, 4), samples=4, processes=processes, phase_seconds=0.2, timeout_seconds=100
    )


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
