"""Folders of quantized models: written, counted, reloaded bit for bit by our loader and by stock transformers."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import auto_class
from sparsebench.models.files.quantized import KEY, QuantizedCheckpoint, encoding_of, open_checkpoint, scheme_of
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.modules.load import load_kernels, load_model
from sparsebench.models.modules.quantized_linear import QuantizedLinear
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.grid import nearest
from sparsebench.steps.quantize.writers import QuantizedWriters
from sparsebench.structure.assess import assess
from tests.making import make, prune_step, quantize_step
from tests.runtime.engines.pruned import FAMILIES, gpt2
from tests.structure.test_assess import _changed

NEAREST = [quantize_step(), quantize_step("int4", 32), quantize_step("int4", 20)]
GPTQ = [quantize_step(rounding="gptq"), quantize_step("int4", 32, "gptq")]


def calibrated(family: str) -> Calibrated:
    ids = torch.randint(4, 90, (6, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    second = {"decoder_input_ids": ids[:, :12], "decoder_attention_mask": mask[:, :12]} if "-" in family else {}
    return Calibrated(Batch(ids, mask, **second), "sha", "text", ids.numel(), ())


def made(parent: Path, family: Any, ways: list[Step], out: Path) -> dict[Step, tuple[Path, StepReport]]:
    folders = {way: out / str(place) for place, way in enumerate(ways)}
    found = make(parent, family, folders, calibrated(family))
    assert list(found) == sorted(ways, key=lambda way: way.settings.rounding == "gptq")
    assert all(isinstance(evidence, StepReport) for evidence in found.values()), found
    return {way: (folders[way], found[way]) for way in ways}


def said(model: torch.nn.Module, family: str) -> torch.Tensor:
    ids = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(5))
    more = {"decoder_input_ids": ids[:, :5]} if "-" in family else {}
    with torch.no_grad():
        out = model(input_ids=ids, **more)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float()


@pytest.fixture(params=[*FAMILIES, "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    if request.param == "gpt2":
        return gpt2(tmp_path / "gpt2"), "decoder"
    return request.getfixturevalue(request.param), FAMILIES[request.param]


@pytest.fixture
def pruned(model: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """Half of its weights are zero."""
    folder, family = model
    make(folder, family, {prune_step("magnitude", 0.5, "layer"): tmp_path / "pruned"})
    return tmp_path / "pruned", family


def test_every_way_keeps_zeros_and_says_what_it_did(pruned: tuple[Path, str], tmp_path: Path) -> None:
    folder, family = pruned
    before = Checkpoint(folder)
    names = [name for name, part in parts(before, family).items() if part.prunable]
    for way, (out, evidence) in made(folder, family, [*NEAREST, *GPTQ], tmp_path / "out").items():
        after = open_checkpoint(out)
        assert isinstance(after, QuantizedCheckpoint) and after.quantized == set(names)
        assert set(after.tensors) == set(before.tensors)
        error = size = zeros = rounded = 0.0
        for name, info in before.tensors.items():
            old, new = before.load(name), after.load(name)
            assert (new.dtype, new.shape) == (old.dtype, old.shape) and after.tensors[name].shape == info.shape
            assert torch.equal(torch.cat(list(after.pieces(name))), new.reshape(-1))
            if name not in names:
                assert torch.equal(old, new)
                continue
            assert not bool(new[old == 0].any()), way
            zeros += int((old == 0).sum())
            rounded += int((new == 0).sum())
            exact = after.codes(name).expanded(torch.float64)
            error += float((old.double() - (exact.T if after.across else exact)).square().sum())
            size += float(old.double().square().sum())
        assert evidence.zeros == rounded
        assert evidence.zeros - evidence.rounded_to_zero == zeros
        assert evidence.relative_error == pytest.approx((error / size) ** 0.5, rel=1e-4)
        stored = sum(i.nbytes for n, i in after.stored.items() if n not in before.tensors or n in names)
        assert evidence.bits == pytest.approx(8 * stored / evidence.prunable)
        assert evidence.bits < (9.5 if way.name == "int8" else 6.5)
        assert evidence.calibration_tokens == (144 if way.settings.rounding == "gptq" else 0)
        text = json.loads((out / "sparsebench.json").read_text())
        assert (
            text["name"] == way.name
            and text["zeros"] == evidence.zeros
            and text["rounded_to_zero"] == evidence.rounded_to_zero
            and "transformers" in text["stock"]
        )
        json.dumps(asdict(evidence), allow_nan=False)


def test_our_loader_gives_the_very_weights(model: tuple[Path, str], tmp_path: Path) -> None:
    folder, family = model
    before = Checkpoint(folder)
    for way, (out, _) in made(folder, family, NEAREST, tmp_path / "out").items():
        assert (
            encoding_of(open_checkpoint(out).config) == way.name
            and scheme_of(open_checkpoint(out).config) == way.settings.scheme
        )
        for dtype in ("auto", "float32"):
            loaded = load_model(out, family, dtype)
            held = {name: tensor for name, tensor in loaded.state_dict().items() if tensor.ndim == 2}
            for name, part in parts(before, family).items():
                if not part.prunable:
                    continue
                weights = before.load(name)
                codes = nearest(weights.T if part.transposed else weights, way.settings.scheme)
                wanted = next(tensor for key, tensor in held.items() if key == name or key.endswith("." + name))
                assert torch.equal(wanted, codes.expanded(wanted.dtype)), name
            assert loaded.dtype == (torch.float32 if dtype == "float32" else load_model(folder, family).dtype)


@pytest.mark.parametrize("way", NEAREST[:2])
def test_kernels_say_what_the_floats_say(model: tuple[Path, str], tmp_path: Path, way: Step) -> None:
    folder, family = model
    ((out, _),) = made(folder, family, [way], tmp_path / "out").values()
    running, floats = load_kernels(out, family, "bfloat16"), load_model(out, family, "float32")
    layers = [one for one in running.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == len(open_checkpoint(out).quantized)
    rounding = said(load_model(out, family, "bfloat16"), family) - said(floats, family)
    difference = said(running, family) - said(floats, family)
    assert float(difference.norm()) <= 2 * float(rounding.norm()) + 1e-4 * float(said(floats, family).norm())
    assert sum(tensor.nbytes for layer in layers for tensor in layer.buffers()) < 0.8 * sum(
        2 * layer.in_features * layer.out_features for layer in layers
    )


@pytest.mark.parametrize("way", NEAREST[:2])
def test_stock_transformers_says_the_same(model: tuple[Path, str], tmp_path: Path, way: Step) -> None:
    pytest.importorskip("compressed_tensors")
    folder, family = model
    ((out, evidence),) = made(folder, family, [way], tmp_path / "out").values()
    config = json.loads((out / "config.json").read_text())
    if config["model_type"] == "gpt2":
        assert "Conv1D" in evidence.note
        return
    assert not evidence.note
    stock = auto_class(family, config).from_pretrained(str(out), dtype="auto").eval()
    assert torch.equal(said(stock, family), said(load_model(out, family), family))


def test_a_group_that_does_not_divide_is_said_to_be_ours_alone(tiny_llama: Path, tmp_path: Path) -> None:
    ((_, evidence),) = made(tiny_llama, "decoder", [quantize_step("int4", 20)], tmp_path / "out").values()
    assert "groups of 20" in evidence.note


def test_what_cannot_be_quantized_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    ((out, _),) = made(tiny_llama, "decoder", [quantize_step()], tmp_path / "out").values()
    with pytest.raises(ModelError, match=r"out/0: its weights are quantized already \(int8\)"):
        make(out, "decoder", {quantize_step("int4"): tmp_path / "again"})
    bare = tmp_path / "bare"
    whole = Checkpoint(tiny_llama)
    layout = [info for info in whole.tensors.values() if "layers" not in info.name]
    with CheckpointWriter(bare, layout, tiny_llama) as writer:
        for info in layout:
            writer.write(info.name, whole.load(info.name))
        writer.close()
    with pytest.raises(ModelError, match="no prunable weights"):
        make(bare, "decoder", {quantize_step(): tmp_path / "none"})
    config = json.loads((out / "config.json").read_text())
    config[KEY]["quant_method"] = "gptq"
    with pytest.raises(UnsupportedError, match="gptq"):
        encoding_of(config)


def test_a_target_that_lost_zeros_is_gone(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ways = QuantizedWriters.write_codes, [quantize_step("int4"), quantize_step()]

    def one_too_many(self: QuantizedWriters, target: Any, *rest: Any) -> None:
        plain(self, target, *rest)
        self.sums[target].zeros += target == ways[0]

    monkeypatch.setattr(QuantizedWriters, "write_codes", one_too_many)
    found = make(tiny_llama, "decoder", {way: tmp_path / way.name for way in ways})
    assert isinstance(found[ways[0]], ModelError) and isinstance(found[ways[1]], StepReport)
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_gptq_without_text_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gptq needs calibration text"):
        make(tiny_llama, "decoder", {quantize_step(rounding="gptq"): tmp_path / "out"})
    assert not list(tmp_path.iterdir())


def test_nan_weights_are_named(tiny_bert: Path, tmp_path: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    folder = _changed(tiny_bert, tmp_path / "nan", **{name: torch.full((64, 128), torch.nan)})
    with pytest.raises(ModelError, match=name):
        make(folder, "encoder", {quantize_step(): tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_structure_counts_the_zeros_of_a_quantized_folder(tiny_bert: Path, tmp_path: Path) -> None:
    ((out, evidence),) = made(tiny_bert, "encoder", [quantize_step("int4", 32)], tmp_path / "out").values()
    found = [tensor for tensor in assess(out, "encoder", [], []).tensors if tensor.prunable]
    assert sum(tensor.count for tensor in found) == evidence.prunable
    assert sum(tensor.zeros for tensor in found) == evidence.zeros


def test_a_folder_that_cannot_be_begun_leaves_no_other_behind(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = {quantize_step(): tmp_path / "made" / "int8", quantize_step("int4"): tmp_path / "file" / "int4"}
    with pytest.raises(NotADirectoryError):
        make(tiny_llama, "decoder", folders)
    assert not [*(tmp_path / "made").iterdir()]
