"""Folders of quantized models: written, counted, reloaded bit for bit by our loader and by stock transformers; experts too."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import auto_class
from sparsebench.models.files.quantized import KEY, QuantizedCheckpoint, Scheme, encoding_of, open_checkpoint, scheme_of
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.modules.load import load_kernels, load_model
from sparsebench.models.modules.quantized_linear import Int8Linear, QuantizedLinear
from sparsebench.models.shape.topology import View, parts
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.grid import nearest
from sparsebench.steps.quantize.writers import QuantizedWriters
from sparsebench.structure.assess import assess
from tests.making import make, prune_step, quantize_step
from tests.models.replaying import rewritten
from tests.models.test_experts import stored, tokens
from tests.runtime.engines.pruned import FAMILIES, gpt2
from tests.steps.shrink.making import text
from tests.structure.test_assess import _changed

NEAREST = [quantize_step(), quantize_step("int4", 32), quantize_step("int4", 20)]
GPTQ = [quantize_step(rounding="gptq"), quantize_step("int4", 32, "gptq")]


def made(parent: Path, family: Any, ways: list[Step], out: Path) -> dict[Step, tuple[Path, StepReport]]:
    folders = {way: out / str(place) for place, way in enumerate(ways)}
    found = make(parent, family, folders, text(family))
    assert list(found) == sorted(ways, key=lambda way: way.settings.rounding == "gptq")
    assert all(isinstance(evidence, StepReport) for evidence in found.values()), found
    return {way: (folders[way], found[way]) for way in ways}


def said(model: torch.nn.Module, family: str) -> torch.Tensor:
    ids = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(5))
    more = {"decoder_input_ids": ids[:, :5]} if "-" in family else {}
    with torch.no_grad():
        out = model(input_ids=ids, **more)
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).float()


@pytest.fixture(scope="module", params=[*FAMILIES, "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    if request.param == "gpt2":
        return gpt2(tmp_path_factory.mktemp("models") / "gpt2"), "decoder"
    return request.getfixturevalue(request.param), FAMILIES[request.param]


@pytest.fixture(scope="module")
def quantized(model: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> dict[Step, tuple[Path, StepReport]]:
    """The model in integers, each rounded to the nearest."""
    return made(*model, NEAREST, tmp_path_factory.mktemp("quantized"))


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
            error += float((old.double() - (exact.T if after.transposed else exact)).square().sum())
            size += float(old.double().square().sum())
        assert evidence.zeros == rounded
        assert evidence.zeros - evidence.rounded_to_zero == zeros
        assert evidence.relative_error == pytest.approx((error / size) ** 0.5, rel=1e-4)
        stored = sum(i.nbytes for n, i in after.stored.items() if n not in before.tensors or n in names)
        assert evidence.bits == pytest.approx(8 * stored / evidence.prunable)
        assert evidence.bits < (9.5 if way.name == "int8" else 6.5)
        assert evidence.calibration_tokens == (text(family).tokens if way.settings.rounding == "gptq" else 0)
        told = json.loads((out / "sparsebench.json").read_text())
        counts = (way.name, evidence.zeros, evidence.rounded_to_zero)
        assert (told["name"], told["zeros"], told["rounded_to_zero"]) == counts and "transformers" in told["stock"]
        found = [tensor for tensor in assess(out, family, [], []).tensors if tensor.prunable]
        assert sum(tensor.count for tensor in found) == evidence.prunable
        assert sum(tensor.zeros for tensor in found) == evidence.zeros
        json.dumps(asdict(evidence), allow_nan=False)


def test_our_loader_gives_the_very_weights(model: tuple[Path, str], quantized: Any) -> None:
    folder, family = model
    before = Checkpoint(folder)
    for way, (out, _) in quantized.items():
        config = open_checkpoint(out).config
        assert (encoding_of(config), scheme_of(config)) == (way.name, way.settings.scheme)
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
def test_kernels_say_what_the_floats_say(model: tuple[Path, str], quantized: Any, way: Step) -> None:
    (out, _), family = quantized[way], model[1]
    running = load_kernels(out, family, "bfloat16")
    layers = [one for one in running.modules() if isinstance(one, QuantizedLinear)]
    assert len(layers) == len(open_checkpoint(out).quantized)
    floats = said(load_model(out, family, "float32"), family)
    rounding = said(load_model(out, family, "bfloat16"), family) - floats
    assert float((said(running, family) - floats).norm()) <= 2 * float(rounding.norm()) + 1e-4 * float(floats.norm())
    held = sum(tensor.nbytes for layer in layers for tensor in layer.buffers())
    assert held < 0.8 * sum(2 * layer.in_features * layer.out_features for layer in layers)


@pytest.mark.parametrize("way", NEAREST)
def test_stock_transformers_says_the_same(model: tuple[Path, str], quantized: Any, way: Step) -> None:
    pytest.importorskip("compressed_tensors")
    (out, evidence), family = quantized[way], model[1]
    config = json.loads((out / "config.json").read_text())
    if config["model_type"] == "gpt2":
        assert "Conv1D" in evidence.note
    elif way == NEAREST[2]:
        assert "groups of 20" in evidence.note  # which do not divide a row: ours alone
    else:
        assert not evidence.note
        stock = auto_class(family, config).from_pretrained(str(out), dtype="auto").eval()
        assert torch.equal(said(stock, family), said(load_model(out, family), family))


def test_what_cannot_be_quantized_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    ((out, _),) = made(tiny_llama, "decoder", [quantize_step()], tmp_path / "out").values()
    with pytest.raises(ModelError, match=r"out/0: its weights are quantized already \(int8\)"):
        make(out, "decoder", {quantize_step("int4"): tmp_path / "again"})
    bare, whole = tmp_path / "bare", Checkpoint(tiny_llama)
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


def test_nan_weights_are_named(tiny_bert: Path, tmp_path: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    folder = _changed(tiny_bert, tmp_path / "nan", **{name: torch.full((64, 128), torch.nan)})
    with pytest.raises(ModelError, match=name):
        make(folder, "encoder", {quantize_step(): tmp_path / "out"})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_begun_leaves_no_other_behind(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folders = {quantize_step(): tmp_path / "made" / "int8", quantize_step("int4"): tmp_path / "file" / "int4"}
    with pytest.raises(NotADirectoryError):
        make(tiny_llama, "decoder", folders)
    assert not [*(tmp_path / "made").iterdir()]


EXPERTS = [quantize_step(), quantize_step(rounding="gptq"), quantize_step("int4", 16, "gptq")]


def of_experts(folder: Path, out: Path, ways: list[Step]) -> dict[Step, Any]:
    return make(folder, "decoder", {way: out / str(number) for number, way in enumerate(ways)}, tokens())


def test_experts_apart_are_quantized_and_run(tmp_path: Path) -> None:
    folder = stored("mixtral", "published", tmp_path)
    ids = tokens().batch.input_ids
    dense = load_model(folder, "decoder")
    found = of_experts(folder, tmp_path, EXPERTS)
    for number, way in enumerate(EXPERTS):
        assert found[way].prunable and found[way].relative_error > 0
        model = load_model(tmp_path / str(number), "decoder")
        name = "model.layers.1.mlp.experts.gate_up_proj"
        error = (model.get_parameter(name) - dense.get_parameter(name)).norm() / dense.get_parameter(name).norm()
        assert 0 < error < (0.02 if way.name == "int8" else 0.8)
    with torch.no_grad():
        kernels = load_kernels(tmp_path / "0", "decoder")
        experts = [name for name, module in kernels.named_modules() if isinstance(module, Int8Linear)]
        assert sum(".experts." in name for name in experts) == 2 * 4 * 3
        mine, floats = kernels(input_ids=ids).logits, load_model(tmp_path / "0", "decoder")(input_ids=ids).logits
    assert (mine - floats).norm() < 0.03 * floats.norm()


def test_an_expert_without_tokens_is_rounded_to_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, way = stored("mixtral", "published", tmp_path), quantize_step(rounding="gptq")
    path = "model.layers.1.block_sparse_moe"
    rewritten(folder, lambda tensors: tensors[f"{path}.gate.weight"].zero_())  # ties go to the first two
    found = of_experts(folder, tmp_path, [way])[way]
    assert "expert matrices" in found.note and "rounded to the nearest" in found.note
    after = QuantizedCheckpoint(tmp_path / "0")
    same = []
    for name in sorted(after.quantized):
        if path in name and "experts" in name and name.endswith("w1.weight"):
            want = nearest(Checkpoint(folder).load(name), way.settings.scheme)
            same.append(torch.equal(after.codes(name).values, want.values))
    assert len(same) == 4 and sum(same) == 2
    unreached = f"{path}.experts.3.w1.weight"
    rewritten(folder, lambda tensors: tensors[unreached][0, 0].fill_(torch.nan))
    with pytest.raises(ModelError, match=unreached):
        of_experts(folder, tmp_path / "nan", [way])


def test_experts_in_one_tensor_are_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    folder = stored("mixtral", "fused", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsupportedError, match=r"experts\.gate_up_proj holds several experts"):
        of_experts(folder, tmp_path, EXPERTS)
    assert sorted(tmp_path.rglob("*")) == before


def test_some_rows_of_a_quantized_matrix_are_those_of_the_whole() -> None:
    weights = torch.randn(8, 32)
    for scheme in (Scheme(8, None), Scheme(4, 16)):
        codes, view = nearest(weights, scheme), View("w", rows=(2, 5))
        assert view.rows is not None
        assert torch.equal(codes.cut(view.rows).expanded(torch.float32), view.to_matrix(codes.expanded(torch.float32)))
