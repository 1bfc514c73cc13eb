"""``quantize: gguf``: the file, the floats that it stands for, and what is said of both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.gguf import load_gguf
from sparsebench.models.files.gguf_variant import gguf_file
from sparsebench.models.files.quantized import encoding_of, float_checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.replay.batch import Batch
from sparsebench.plan.single import prepare_single as one_model
from sparsebench.sources import Cache
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from sparsebench.storage import measure
from tests.making import make
from tests.models.test_gguf_writer import ABSENT, tiny
from tests.runtime.engines.pruned import prune


def quantized(parent: Path, out: Path, text: Calibrated | None = None, **settings: Any) -> StepReport:
    """Make one variant of ``parent`` in ``out``; return its report or raise its error."""
    wanted = single("quantize", "gguf", **settings)
    report: StepReport = make(parent, "decoder", {wanted: out}, text)[wanted]
    return report


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    return tiny("llama", tmp_path_factory.mktemp("models") / "dense")


def test_the_floats_and_the_size_are_those_of_the_file_and_no_step_goes_on_from_it(dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = quantized(dense, out, type="Q8_0")
    file = gguf_file(out)
    assert file is not None and encoding_of(Checkpoint(out).config) == "gguf"
    read, _ = load_gguf(file, "decoder", "float32")
    floats = load_model(out, "decoder").state_dict()
    assert all(bool((read.state_dict()[name] == tensor).all()) for name, tensor in floats.items())
    assert report.bits == 8.5 and 0 < report.relative_error < 0.01
    assert "Q8_0" in report.note
    result = measure(out, "decoder", ("dense", "packed"), tmp_path / "work", tmp_path / "kept")
    assert {size.bytes for size in result.sizes} == {file.stat().st_size}
    assert not (tmp_path / "kept").exists()
    with pytest.raises(ModelError, match="gguf"):
        float_checkpoint(out, "prune first")
    # A folder that is a source keeps its file, and one without is named.
    kept = gguf_file(one_model(str(out), None, "auto", Cache(tmp_path / "cache")).folder)
    assert kept is not None and kept.read_bytes() == file.read_bytes()
    file.unlink()
    with pytest.raises(ModelError, match=r"model\.gguf"):
        gguf_file(out)


def test_zeros_of_q8_0_stay_and_those_of_a_mixture_are_said_to_be_lost(dense: Path, tmp_path: Path) -> None:
    pruned = prune(dense, tmp_path / "pruned", 0.5)
    kept, lost = (quantized(pruned, tmp_path / type, type=type) for type in ("Q8_0", "Q4_K_M"))
    assert kept.achieved >= 0.5 and kept.already_zero >= kept.prunable // 2
    assert lost.achieved < 0.5 and "zeros of the parent" in lost.note


def test_importance_weights_the_errors_of_rounding(dense: Path, tmp_path: Path) -> None:
    ids = torch.randint(5, 90, (4, 32), generator=torch.Generator().manual_seed(1))
    text = Calibrated.of(Batch(ids, torch.ones_like(ids)), [], (), {})
    plain = quantized(dense, tmp_path / "plain", type="Q4_0")
    weighted = quantized(dense, tmp_path / "weighted", text, type="Q4_0", importance=True)
    assert weighted.calibration_tokens == 128 and plain.calibration_tokens == 0
    assert weighted.relative_error != plain.relative_error
    notes = json.loads((tmp_path / "weighted" / "sparsebench.json").read_text())
    assert notes["calibration_sha256"] == weighted.calibration_sha256


def test_a_text_that_fails_takes_no_variant_that_reads_none(dense: Path, tmp_path: Path) -> None:
    plain, weighted = (single("quantize", "gguf", type="Q8_0", importance=importance) for importance in (False, True))
    results = make(dense, "decoder", {weighted: tmp_path / "weighted", plain: tmp_path / "plain"})
    assert isinstance(results[plain], StepReport) and gguf_file(tmp_path / "plain")
    assert isinstance(results[weighted], ModelError) and not (tmp_path / "weighted").exists()
