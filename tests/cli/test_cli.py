"""The command line as a person meets it: exit codes, where output goes, errors without tracebacks."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sparsebench.cli.app import app
from sparsebench.sources import KNOWN
from sparsebench.storage.packed import pack
from tests.cli.conftest import HALF
from tests.command import call, succeed

ONE = 'version: 1\nmodels: [{{name: a, source: "path:{}", family: decoder}}]\n'
LONG = "wheel:" + " + ".join(f"{name}==1!{name}.1#sha256={'0' * 64}" for name in "abcd") + " as x"
"""A source may be longer than a file's name."""


def test_init_writes_a_manifest_that_plans(tmp_path: Path) -> None:
    succeed("init", tmp_path / "mine.yaml")
    assert json.loads(call("plan", tmp_path / "mine.yaml", "--json", "--offline").stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    for words in ((), ("--model", "path:gone", "--data", "gone.csv")):  # before a model is fetched
        again = call("init", tmp_path / "mine.yaml", *words)
        assert again.returncode == 2 and "--force" in again.stderr


def test_init_for_an_editor_brings_the_schema_that_it_names(tmp_path: Path) -> None:
    succeed("init", tmp_path / "mine.yaml", "--editor")
    first = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    named = tmp_path / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(named.read_text()) == json.loads(call("schema").stdout)
    succeed("plan", tmp_path / "mine.yaml", "--offline")
    assert call("init", tmp_path / "second.yaml", "--editor").returncode == 0, "it says the same"
    named.write_text("{}")
    refused = call("init", tmp_path / "third.yaml", "--editor")
    assert refused.returncode == 2 and "--force" in refused.stderr and named.name in refused.stderr
    assert named.read_text() == "{}" and not (tmp_path / "third.yaml").exists()
    assert call("init", tmp_path / "new" / named.name, "--editor").returncode == 2


def test_apply_inspect_pack_unpack(tiny_llama: Path, tmp_path: Path) -> None:
    made = succeed("apply", tiny_llama, "prune: magnitude, sparsity: 0.9", "--out", tmp_path / "made", "--json")
    result = json.loads(made.stdout)
    assert result["folder"] == str(tmp_path / "made")
    assert [round(step["achieved"], 3) for step in result["steps"]] == [0.9]
    seen = json.loads(call("inspect", tmp_path / "made", "--json").stdout)
    prunable = next(row for row in seen["summary"] if row["scope"] == "prunable")
    assert prunable["zeros"] == pytest.approx(0.9, abs=1e-3)
    thresholds = ("absolute", "relative")
    assert [len(seen[name]) for name in thresholds] == [len(prunable[f"near_{name}"]) for name in thresholds]
    packed = json.loads(call("pack", tmp_path / "made", "--json").stdout)
    assert packed["folder"] == str(tmp_path / "made.packed") and packed["bytes"] < packed["bytes_before"]
    succeed("unpack", tmp_path / "made.packed", "--out", tmp_path / "back")
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("made", "back"))
    assert before == after
    succeed("pack", tmp_path / "made", "--format", "archive")
    succeed("unpack", tmp_path / "made.archive")
    assert (tmp_path / "made.unpacked" / "model.safetensors").read_bytes() == before
    shutil.rmtree(tmp_path / "made.packed")
    succeed("pack", ".", cwd=tmp_path / "made")
    assert (tmp_path / "made.packed").is_dir()
    (tmp_path / "made").rename(tmp_path / "dense")  # the name of a format, and no format behind a name
    assert call("pack", tmp_path / "dense").returncode == 0 and (tmp_path / "dense.packed").is_dir()


@pytest.mark.parametrize("words", [[HALF, "quantize: int8"], [f"[{{{HALF}}}, {{quantize: int8}}]"]])
def test_apply_makes_a_chain(words: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    made = succeed("apply", tiny_llama, *words, "--out", tmp_path / "made", "--json")
    steps = json.loads(made.stdout)["steps"]
    assert [(step["verb"], step["name"]) for step in steps] == [("prune", "magnitude"), ("quantize", "int8")]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.long
def test_apply_reads_masks_and_writes_them(tiny_llama: Path, tmp_path: Path) -> None:
    """Masks that it has written are masks that it can read, and a model that it can read."""
    succeed("apply", tiny_llama, HALF, "--as-masks", "--out", tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    masks = tmp_path / "half.safetensors"
    save_file({name: mask for name, mask in state.items() if name.endswith("_mask")}, masks)
    again = succeed("apply", tiny_llama, f"prune: mask, file: '{masks}'", "--out", tmp_path / "again", "--json")
    (step,) = json.loads(again.stdout)["steps"]
    assert (round(step["achieved"], 3), step["already_zero"]) == (0.5, 0)
    kept = call("apply", tmp_path / "out", f"{HALF}, keep_zeros: true", "--out", tmp_path / "kept", "--json")
    (step,) = json.loads(kept.stdout)["steps"]
    assert round(step["achieved"], 3) == 0.75 and step["already_zero"] == step["prunable"] // 2
    assert "14 weights with masks" in step["note"]


@pytest.mark.parametrize(
    ("model", "family", "step"),
    [
        ("tiny_llama", "decoder", "prune: sparsegpt, pattern: 2:4, propagate: dense"),
        ("tiny_bert", "encoder", "prune: ria, sparsity: 0.5, allocation: owl"),
        ("tiny_t5", "encoder-decoder", "prune: wanda, sparsity: 0.5"),
    ],
)
@pytest.mark.long
def test_apply_reads_an_own_text(
    model: str, family: str, step: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    rows = [
        {"text": f"the {n} old cats sat on {n} mats " * 8, "answer": f"they sat there {n} times"} for n in range(40)
    ]
    text.write_text("\n".join(map(json.dumps, rows)))
    calibration = f"source: 'path:{text}', field: text, samples: 4, length: 16"
    calibration += ", target: answer" if family == "encoder-decoder" else ""
    options = ("--family", family, "--calibration", calibration, "--seed", 2, "--out", tmp_path / "made", "--json")
    made = succeed("apply", request.getfixturevalue(model), step, *options)
    (report,) = json.loads(made.stdout)["steps"]
    assert report["achieved"] == pytest.approx(0.5, abs=0.02)
    kept = json.loads((tmp_path / "made" / "sparsebench.json").read_text())
    assert kept["calibration_tokens"] == report["calibration_tokens"] > 0
    asked = {"source": f"path:{text}", "field": "text", "samples": 4, "length": 16, "seed": 2}
    assert asked.items() <= kept["calibration"].items()
    assert kept["calibration"]["target"] == ("answer" if family == "encoder-decoder" else None)


def test_a_disk_too_small_is_named_first(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(file.stat().st_size for file in tiny_llama.iterdir())
    succeed("inspect", tiny_llama)  # prepares it
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(1.5 * size)))
    shown = call("apply", tiny_llama, HALF, "--out", tmp_path / "one")
    assert shown.returncode == 0 and len(shown.stdout.splitlines()) == 2 and "one" in shown.stderr
    refused = call("apply", tiny_llama, HALF, "quantize: int8", "--out", tmp_path / "two")
    assert refused.returncode == 2 and "two" in refused.stderr and "free" in refused.stderr
    assert not (tmp_path / "two").exists()


@pytest.mark.long
def test_a_packed_model_is_measured_where_it_lies(tiny_llama: Path, tmp_path: Path) -> None:
    succeed("apply", tiny_llama, "prune: magnitude, sparsity: 0.9", "--out", tmp_path / "pruned")
    succeed("pack", tmp_path / "pruned")
    packed = tmp_path / "pruned.packed"
    shape = ("--prompt", 8, "--generate", 2, "--samples", 4, "--json")
    done = succeed("measure", packed, "--against", tiny_llama, "--engine", "sparse", *shape)
    found = json.loads(done.stdout)
    assert found["latency"]["engine"] == found["memory"]["engine"] == "sparse"
    assert found["latency"]["parity"]["wraps_only"] is False
    refused = call("measure", packed, "--engine", "hf", *shape)
    assert refused.returncode == 1 and "packed" in refused.stderr and "unpack" in refused.stderr


def test_a_packed_folder_may_have_any_name(tiny_llama: Path, tmp_path: Path) -> None:
    pack(tiny_llama, tmp_path / "my model.packed")
    (tmp_path / "t.txt").write_text("a cat\n")
    tasks = 'benchmarks: {decoder: [{task: perplexity, source: "path:t.txt"}]}\n'
    (tmp_path / "m.yaml").write_text(ONE.format(tiny_llama) + tasks)
    refused = call("score", "my model.packed", "--manifest", "m.yaml", cwd=tmp_path)
    assert refused.returncode == 2 and "unpack" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "nowhere.yaml"], "sparsebench init"),
        (["apply", "path:nowhere", HALF, "--out", "x"], "nowhere"),
        (["apply", "nowhere", "--out", "x"], "nowhere: no such folder"),
        (["apply", HALF, "--out", "x"], "no such folder"),
        (["apply", "random", "--out", "x"], "no step"),
        (["apply", "random", "prune: magnitude", "--out", "x"], "sparsity"),
        (["apply", "random", "prune: magnitude, sparsity: [0.5, 0.9]", "--out", "x"], "2 variants"),
        (["apply", "random", "sparsity: 0.5", "--out", "x"], "prune"),
        (["apply", "random", "prune: [a", "--out", "x"], "prune: [a"),
        (["apply", "random", "wanda", "--out", "x"], "prune"),
        (["apply", "random", "[5]", "--out", "x"], "5: not a step"),
        (["apply", "random", HALF, "--calibration", "[a: b]", "--out", "x"], "--calibration"),
        (["apply", "random", HALF, "--calibration", "sauce: 5", "--out", "x"], "sauce"),
        (["apply", "random", HALF, "--calibration", '{"sauce":5}', "--out", "x"], "sauce: "),
        (["apply", "random", "quantize: int8", "--as-masks", "--out", "x"], "--as-masks"),
        (["apply", "random", HALF, "--device", "nonsense", "--out", "x"], "nonsense"),
        (["apply", "random", HALF, "--seed", str(2**62), "--out", "x"], "--seed"),
        (["pack", "nowhere", "--format", "pakced"], "did you mean `packed`?"),
        (["measure", "path:nowhere", "--engine", "spare"], "did you mean `sparse`?"),
        (["inspect", LONG, "--offline"], "not in the cache"),
        (["clean", "--only", "foo"], "--only foo: no such kind"),
        (["score", "path:nowhere", "--task", "arc_esay"], "arc_easy"),
        (["score", "path:nowhere", "--task", "piqa", "--documents"], "--json"),
        (["doctor", "--gpu", "--offline"], "--offline"),
        (["sql", "select 1"], "no ledger"),
        (["sql", "select 1", "--json", "--format", "csv"], "--json and --format csv"),
        (["report", "--brief", "--results", "r.md"], "--results r.md"),
        (["figures", "--json"], "add --list"),
        (["status"], ""),
        (["ingest", "nowhere"], "nowhere: does not exist"),
        (["bundle", "nowhere", "b.jsonl.zst"], "nowhere: does not exist"),
        (["bundle", ".", "b.jsonl.zst", "--manifest", "absent"], "absent"),
    ],
)
def test_mistakes_are_explained(words: list[str], says: str, tmp_path: Path) -> None:
    done = call(*words, cwd=tmp_path)
    assert says in done.stderr and "Traceback" not in done.stderr and done.returncode == 2


def test_a_plan_lists_what_only_asks_for_and_counts_the_rest(tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(ONE.format(tiny_llama))
    misspelt = call("plan", path, "--only", "modle=a")
    assert misspelt.returncode == 2 and "did you mean `model`?" in misspelt.stderr
    done = call("plan", path, "--only", "stage=structure")
    assert done.stdout.splitlines() == ["model\tvariant\twhat\truns\twhy", "a\tdense\tstructure\tyes\tnew"]
    assert "not listed: 1 cell left out by --only" in done.stderr
    assert len(json.loads(call("plan", path, "--only", "stage=structure", "--json").stdout)) == 2
    path.write_text(
        ONE.format(tiny_llama) + "benchmarks: {decoder: [{task: mmlu, limit: 10}, {task: piqa, limit: 100}]}\n"
    )
    said = call("plan", path).stderr
    assert "mmlu, 570 documents: a drop below" in said, "of all its parts"
    assert "piqa, 100 documents: a drop below" in said and "; 2 points take 1,9" in said


def test_models_are_listed() -> None:
    table = CliRunner().invoke(app, ["models"]).stdout
    assert [row.partition("\t")[0] for row in table.splitlines()[1:]] == list(KNOWN)
    rows = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    assert [(row["alias"], row["source"]) for row in rows] == [(name, known.source) for name, known in KNOWN.items()]
