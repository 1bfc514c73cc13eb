"""The command line as a person meets it: exit codes, where output goes, errors without tracebacks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsebench.cli.sparsify import _check_room, _settings
from sparsebench.errors import UserError
from tests.command import call


def test_init_writes_a_manifest_that_plans(tmp_path: Path) -> None:
    assert call("init", tmp_path / "mine.yaml").returncode == 0
    command = [sys.executable, "-m", "sparsebench", "plan", str(tmp_path / "mine.yaml"), "--json", "--offline"]
    planned = subprocess.run(command, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    again = call("init", tmp_path / "mine.yaml")
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_init_for_an_editor_brings_the_schema_that_it_names(tmp_path: Path) -> None:
    assert call("init", tmp_path / "mine.yaml", "--editor").returncode == 0
    first = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    named = tmp_path / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(named.read_text()) == json.loads(call("schema").stdout)
    assert call("plan", tmp_path / "mine.yaml", "--offline").returncode == 0
    assert call("init", tmp_path / "second.yaml", "--editor").returncode == 0, "it says the same"
    named.write_text("{}")
    refused = call("init", tmp_path / "third.yaml", "--editor")
    assert refused.returncode == 2 and "--force" in refused.stderr and named.name in refused.stderr
    assert named.read_text() == "{}" and not (tmp_path / "third.yaml").exists()


def test_inspect_sparsify_pack_unpack(tiny_llama: Path, tmp_path: Path) -> None:
    made = call("sparsify", tiny_llama, "--sparsity", 0.5, "--sparsity", 0.9, "--out", tmp_path / "pruned", "--json")
    assert made.returncode == 0, made.stderr
    assert [round(row["achieved"], 3) for row in json.loads(made.stdout)] == [0.5, 0.9]
    seen = json.loads(call("inspect", tmp_path / "pruned" / "0.90", "--json").stdout)
    prunable = next(row for row in seen["summary"] if row["scope"] == "prunable")
    assert prunable["zeros"] == pytest.approx(0.9, abs=1e-3)
    packed = json.loads(call("pack", tmp_path / "pruned" / "0.90", "--json").stdout)
    assert packed["folder"] == str(tmp_path / "pruned" / "0.90.packed") and packed["bytes"] < packed["bytes_before"]
    assert call("unpack", tmp_path / "pruned" / "0.90.packed", "--out", tmp_path / "back").returncode == 0
    before, after = (
        (folder / "model.safetensors").read_bytes() for folder in (tmp_path / "pruned" / "0.90", tmp_path / "back")
    )
    assert before == after
    assert call("pack", tmp_path / "pruned" / "0.90", "--format", "archive").returncode == 0
    assert call("unpack", tmp_path / "pruned" / "0.90.archive").returncode == 0
    assert (tmp_path / "pruned" / "0.90.unpacked" / "model.safetensors").read_bytes() == before
    assert call("pack", ".", cwd=tmp_path / "pruned" / "0.50").returncode == 0
    assert (tmp_path / "pruned" / "0.50.packed").is_dir()


def test_a_setting_is_read_as_a_manifest_reads_it() -> None:
    assert _settings(["damping=1e-2", "keep_zeros=true", "file=m.st"]) == {
        "damping": 0.01, "keep_zeros": True, "file": "m.st",
    }  # fmt: skip
    for word in ("damping", "file=@masks", "file=[a", "file=*.safetensors"):
        with pytest.raises(UserError, match=r"^--set " + re.escape(word)):
            _settings([word])


@pytest.mark.long
def test_sparsify_by_masks_and_writes_them(tiny_llama: Path, tmp_path: Path) -> None:
    """Masks that it has written are masks that it can read, and a model that it can read."""
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"
    made = call("sparsify", tiny_llama, "--sparsity", 0.5, "--as-masks", "--out", out)
    assert made.returncode == 0, made.stderr
    state = load_file(out / "0.50" / "model.safetensors")
    save_file({name: mask for name, mask in state.items() if name.endswith("_mask")}, tmp_path / "half.safetensors")
    told = ("--method", "mask", "--set", f"file={tmp_path / 'half.safetensors'}", "--out", tmp_path / "again", "--json")
    again = call("sparsify", tiny_llama, *told)
    assert again.returncode == 0, again.stderr
    (row,) = json.loads(again.stdout)
    assert (Path(row["folder"]).name, round(row["achieved"], 3), row["already_zero"]) == ("half", 0.5, 0)
    kept = call(
        "sparsify", out / "0.50", "--sparsity", 0.5, "--set", "keep_zeros=true", "--out", tmp_path / "kept", "--json"
    )
    (row,) = json.loads(kept.stdout)
    assert round(row["achieved"], 3) == 0.75 and row["already_zero"] == row["prunable"] // 2
    assert "14 weights with masks" in row["note"]


@pytest.mark.long
@pytest.mark.parametrize("form", ["packed", "archive"])
def test_sparsify_leaves_what_pack_would_make(tiny_llama: Path, tmp_path: Path, form: str) -> None:
    for name, out in (("dense", tmp_path / "dense"), (form, tmp_path / "stored")):
        made = call("sparsify", tiny_llama, "--sparsity", 0.9, "--format", name, "--out", out)
        assert made.returncode == 0, made.stderr
    assert call("pack", tmp_path / "dense" / "0.90", "--format", form, "--out", tmp_path / "packed").returncode == 0
    assert [path.name for path in (tmp_path / "stored").iterdir()] == ["0.90"]
    name = f"model.safetensors.{form}"
    assert (tmp_path / "stored" / "0.90" / name).read_bytes() == (tmp_path / "packed" / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "family", "options"),
    [
        ("tiny_llama", "decoder", ("--method", "sparsegpt", "--pattern", "2:4", "--propagate", "dense")),
        ("tiny_bert", "encoder", ("--method", "ria", "--sparsity", 0.5, "--allocation", "owl")),
        ("tiny_t5", "encoder-decoder", ("--method", "wanda", "--sparsity", 0.5, "--target", "answer")),
    ],
)
@pytest.mark.long
def test_sparsify_calibrates_on_a_file_of_ones_own(
    model: str, family: str, options: tuple[object, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    rows = [
        {"text": f"the {n} old cats sat on {n} mats " * 8, "answer": f"they sat there {n} times"} for n in range(40)
    ]
    text.write_text("\n".join(map(json.dumps, rows)))
    told = ("--calibration", f"path:{text}", "--field", "text", "--samples", 4, "--length", 16, "--seed", 2, "--json")
    folder, out = request.getfixturevalue(model), tmp_path / "pruned"
    made = call("sparsify", folder, "--family", family, *options, *told, "--out", out)
    assert made.returncode == 0, made.stderr
    (row,) = json.loads(made.stdout)
    assert row["achieved"] == pytest.approx(0.5, abs=0.02)
    kept = json.loads((Path(row["folder"]) / "sparsebench.json").read_text())
    assert kept["calibration_tokens"] == row["calibration_tokens"] > 0
    asked = {"source": f"path:{text}", "field": "text", "samples": 4, "length": 16, "seed": 2}
    assert asked.items() <= kept["calibration"].items()
    assert kept["calibration"]["target"] == ("answer" if family == "encoder-decoder" else None)


def test_a_disk_too_small_for_all_versions_is_told_before_the_work(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(file.stat().st_size for file in tiny_llama.iterdir())
    for free, fits in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda place, free=free: SimpleNamespace(free=free))
        if fits:
            _check_room(tmp_path / "made" / "here", 2, tiny_llama)
        else:
            with pytest.raises(UserError, match="2 versions take .* are free"):
                _check_room(tmp_path / "made" / "here", 2, tiny_llama)


@pytest.mark.long
def test_a_packed_model_is_measured_where_it_lies(tiny_llama: Path, tmp_path: Path) -> None:
    made = ("sparsify", tiny_llama, "--sparsity", 0.9, "--format", "packed", "--out", tmp_path / "pruned")
    assert call(*made).returncode == 0
    packed = next(tmp_path.glob("pruned/*"))
    shape = ("--prompt", 8, "--generate", 2, "--samples", 4, "--json")
    done = call("measure", packed, "--against", tiny_llama, "--engine", "sparse", *shape)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["latency"]["engine"] == found["memory"]["engine"] == "sparse"
    assert found["latency"]["parity"]["wraps_only"] is False
    refused = call("measure", packed, "--engine", "hf", *shape)
    assert refused.returncode == 1
    assert "packed" in refused.stderr and "unpack" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "nowhere.yaml"], "sparsebench init"),
        (["sparsify", "path:nowhere", "--sparsity", "0.5", "--out", "x"], "nowhere"),
        (["sparsify", "random", "--sparsity", "50", "--out", "x"], "0.5"),
        (["pack", "nowhere", "--format", "pakced"], "did you mean `packed`?"),
        (["sparsify", "random", "--sparsity", "0.5", "--format", "dens", "--out", "x"], "did you mean `dense`?"),
        (["measure", "path:nowhere", "--engine", "spare"], "did you mean `sparse`?"),
        (["sparsify", "random", "--pattern", "4:2", "--out", "x"], "2:4"),
        (["sparsify", "random", "--method", "magnitud", "--sparsity", "0.5", "--out", "x"], "magnitude"),
        (["sparsify", "random", "--out", "x"], "sparsity"),
        (["sparsify", "random", "--method", "mask", "--out", "x"], "--file"),
        (
            ["sparsify", "random", "--method", "mask", "--set", "file=m", "--sparsity", "0.5", "--out", "x"],
            "--sparsity",
        ),
        (["sparsify", "random", "--sparsity", "0.5", "--set", "keep_zeros=[true, false]", "--out", "x"], "x/0.50"),
        (["sparsify", "random", "--sparsity", "0.5", "--as-masks", "--format", "packed", "--out", "x"], "--as-masks"),
        (["sparsify", "random", "--pattern", "4x4", "--out", "x"], "sparsity"),
        (["sparsify", "random", "--granularity", "global", "--pattern", "2:4", "--out", "x"], "--granularity"),
        (["sparsify", "random", "--sparsity", "0.5", "--device", "nonsense", "--out", "x"], "nonsense"),
        (["sparsify", "random", "--sparsity", "0.5", "--seed", str(2**62), "--out", "x"], "--seed"),
        (["clean", "--only", "foo"], "--only foo: no such kind"),
        (["score", "path:nowhere", "--task", "arc_esay"], "arc_easy"),
        (["score", "path:nowhere", "--task", "piqa", "--documents"], "--json"),
        (["doctor", "--gpu", "--offline"], "--offline"),
        (["sql", "select 1"], "no ledger"),
        (["status"], ""),
    ],
)
def test_mistakes_are_explained(words: list[str], says: str, tmp_path: Path) -> None:
    done = call(*words, cwd=tmp_path)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)


def test_only_names_the_known_keys(tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f'version: 1\nmodels: [{{name: a, source: "path:{tiny_llama}", family: decoder}}]\n')
    done = call("plan", path, "--only", "modle=a")
    assert done.returncode == 2
    assert "did you mean model=a" in done.stderr


def test_a_plan_lists_what_only_asks_for_and_counts_the_rest(tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(f'version: 1\nmodels: [{{name: a, source: "path:{tiny_llama}", family: decoder}}]\n')
    done = call("plan", path, "--only", "stage=structure")
    assert done.stdout.splitlines() == ["model\tvariant\twhat\truns\twhy", "a\tdense\tstructure\tyes\tnew"]
    assert "not listed: 1 cell left out by --only" in done.stderr
    assert len(json.loads(call("plan", path, "--only", "stage=structure", "--json").stdout)) == 2


def test_a_reader_that_has_seen_enough_is_no_failure(tmp_path: Path) -> None:
    """``sparsebench schema | head -c 1``."""
    reading, writing = os.pipe()
    done = subprocess.Popen(
        [sys.executable, "-m", "sparsebench", "schema"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    os.close(reading)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert said == ""


def test_a_plan_counts_the_documents_of_every_part(tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(
        f'version: 1\nmodels: [{{name: a, source: "path:{tiny_llama}", family: decoder}}]\n'
        "benchmarks: {decoder: [{task: mmlu, limit: 10}, {task: piqa, limit: 100}]}\n"
    )
    said = call("plan", path).stderr
    assert "mmlu, 570 documents: a drop below" in said
    assert "piqa, 100 documents: a drop below" in said
    assert "; 2 points take 1,9" in said
