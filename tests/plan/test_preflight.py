"""What is refused before anything is fetched."""

from pathlib import Path

import pytest

from sparsebench.errors import UserError
from sparsebench.manifest.problems import ManifestError
from sparsebench.models.files.families import family_of
from sparsebench.plan.single import name_of
from sparsebench.sources import parse
from tests.plan.planning import RANDOM, refusal, written

ONE = """
version: 1
models:
  - name: plain
    source: random
    family: encoder
    architecture: {{model_type: bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 64}}
"""
TWO = ONE.replace("plain", "shared").replace("bert", "albert") + ONE.partition("models:\n")[2]
MANIFEST = (
    TWO
    + """calibration: {{source: "path:text.txt"}}
variants:
  - {{prune: {method}, sparsity: 0.5{more}}}
"""
)


@pytest.mark.parametrize(
    ("method", "more", "refused"), [("wanda", "", True), ("wanda", ", models: plain", False), ("magnitude", "", False)]
)
def test_what_cannot_be_calibrated_is_refused_with_its_line(
    tmp_path: Path, method: str, more: str, refused: bool
) -> None:
    (tmp_path / "text.txt").write_text("some words\n")
    text = MANIFEST.format(method=method, more=more)
    if refused:
        said = refusal(tmp_path, text)
        assert "shared: albert" in said and "mine.yaml:14" in said and "plain:" not in said
    else:
        assert written(tmp_path, text).plan.cells


STEP = """version: 1
models: [{{name: m, source: random, family: {family}, architecture: {{model_type: {model}, vocab_size: 64}}}}]
calibration: {{source: "path:text.txt"}}
benchmarks: {{encoder: [{{task: probe, source: "path:scored.jsonl"}}]}}
variants:
  - - {{{before}}}
    - {{{step}}}
"""
BERT = "bert, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 48"
HEAD = f"{BERT}, architectures: [BertForSequenceClassification]"
BART = "bart, is_encoder_decoder: true, encoder_ffn_dim: 48, decoder_ffn_dim: 40"
TASK = "shrink: taylor, labels: task, keep: 0.5, source: path:{}.jsonl"
GROUPS = "moefy: kmeans, experts: {}, active: 0.5"
STEPS = [
    ("albert, hidden_size: 16, num_attention_heads: 2", "shrink: l2, keep: 0.5", "m: albert: nothing can be cut out of it"),
    (BERT, "shrink: l2, keep: 0.5, of: experts", "m: bert: it has no experts that can go"),
    (BERT, TASK.format("train"), "m: `labels: task` needs a sequence-classification head"),
    (HEAD, TASK.format("scored"), "its text is part of `probe`"),
    (HEAD, TASK.format("train"), ""),
    (BERT, "shrink: taylor, keep: 0.5", ""),
    ("mixtral, num_local_experts: 4", "skip: teal, share: 0.4", "mixtral: it is a mixture of experts"),
    ("qwen3_moe", GROUPS.format(4), "qwen3_moe: it is a mixture of experts"),
    ("mamba", GROUPS.format(4), "mamba cannot be calibrated block by block"),
    ("bloom, hidden_size: 16", "skip: cats, share: 0.4", "bloom: its activation function is not in"),
    ("bloom, hidden_size: 16", "skip: teal, share: 0.4", ""),
    ("bloom, hidden_size: 16", GROUPS.format(4), "bloom: its activation function is not in"),
    (BERT, GROUPS.format([6, 8, 16]), ""),
    (BERT, GROUPS.format([8, 7]), "48 neurons make no 7 experts"),
    ("gpt2, n_embd: 12, n_inner: null", GROUPS.format(32), "48 neurons make no 32 experts"),
    (BART, GROUPS.format(16), "40 neurons make no 16"),
    (BERT, "trim: corpus, source: path:missing.txt", "missing.txt"),
    (BERT, "trim: corpus, source: random", "random: untrained weights"),
    (BERT, "prune: gradual, pattern: rows", "pattern"),
    (BERT, "prune: gradual, schedule: stepwise, sparsity: 0.8", "schedule"),
]  # fmt: skip


def two_steps(folder: Path, model: str, step: str, before: str = "prune: magnitude, sparsity: 0.5") -> str:
    """A manifest with two steps, the second on line 7; texts lie beside it."""
    (folder / "text.txt").write_text("some words\n")
    for name in ("train", "scored"):
        (folder / f"{name}.jsonl").write_text('{"text": "some words", "label": 1}\n' * 3)
    family = family_of({"model_type": model.partition(",")[0]}) or "decoder"
    return STEP.format(model=model, step=step, before=before, family=family)


@pytest.mark.parametrize(("model", "step", "said"), STEPS)
def test_a_step_that_a_model_cannot_take_is_refused_with_its_line(
    model: str, step: str, said: str, tmp_path: Path
) -> None:
    text = two_steps(tmp_path, model, step)
    if said:
        shown = refusal(tmp_path, text)
        assert said in shown and "mine.yaml:7" in shown
    else:
        assert written(tmp_path, text).plan.cells


@pytest.mark.parametrize("step", ["prune: magnitude, sparsity: 0.5", "quantize: int4", "shrink: l2, keep: 0.5"])
def test_what_changes_floats_does_not_follow_integers(step: str, tmp_path: Path) -> None:
    assert "leaves integers" in refusal(tmp_path, two_steps(tmp_path, BERT, step, before="quantize: int8"))
    assert written(tmp_path, two_steps(tmp_path, BERT, "quantize: int8")).plan.cells


def test_a_misspelt_setting_makes_no_selection_wrong(tmp_path: Path) -> None:
    text = "version: 1\nmodels: [{name: m, source: random, family: encoder, architecture: {model_type: bert}}]\n"
    asked = "runtime: {engines: hf, select: {sparsity: 0.5}}\n"
    shown = refusal(tmp_path, text + "variants: [{prune: magnitude, sparsity: 0.5, granularty: row}]\n" + asked)
    assert shown.startswith(f"{tmp_path}/mine.yaml:3") and "granularty" in shown, "one problem"


SELECTED = f"""{RANDOM}  - {{name: n, source: random, family: decoder, architecture: {{model_type: gpt2, n_embd: 16, n_head: 2}}}}
variants:
  - {{prune: magnitude, sparsity: 0.5, models: m}}
  - {{prune: random, sparsity: 0.9, models: n}}
  - [{{prune: magnitude, sparsity: 0.5}}, {{prune: random, sparsity: 0.7, keep_zeros: true}}]
"""


@pytest.mark.parametrize(
    ("more", "at", "said"),
    [
        ("runtime: {select: {prune: magnitude, sparsity: 0.9}}", ":10:19", "`{prune: magnitude, sparsity: 0.9}`"),
        ("runtime: {models: m, select: {sparsity: 0.9}}", ":10:30", "no variant of `m`"),
        (
            "runtime: [{ranks: 2}, {select: [{prune: random}, {prune: random, sparsity: 0.5}]}]",
            ":10:50",
            "sparsity: 0.5",
        ),
        ("benchmarks: {decoder: [{task: piqa, select: {prune: random, sparsity: 0.5}}]}", ":10:45", "sparsity: 0.5"),
    ],
)
def test_a_selection_that_no_variant_matches_is_refused_with_its_line(
    more: str, at: str, said: str, tmp_path: Path
) -> None:
    shown = refusal(tmp_path, SELECTED + more)
    assert shown.startswith(f"{tmp_path}/mine.yaml{at}") and said in shown, "one problem"


@pytest.mark.parametrize(
    "more",
    [
        "runtime: {select: {prune: random, sparsity: 0.7}}",
        "benchmarks: {encoder: [{task: sciq_retrieval, select: {prune: random}}]}",
    ],
)
def test_a_selection_that_a_variant_matches_or_that_is_for_no_model_is_not(more: str, tmp_path: Path) -> None:
    assert written(tmp_path, SELECTED + more).plan.cells


def test_the_whole_of_a_rehearsal_is_of_a_rehearsal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--full"):
        written(tmp_path, "version: 1\n", full=True)


def test_experts_that_a_smaller_shape_may_divide_are_not_refused(tmp_path: Path) -> None:
    """What a step before leaves is not known from config.json."""
    assert written(tmp_path, two_steps(tmp_path, BERT, GROUPS.format(5), "shrink: l2, keep: 0.8333")).plan.cells


PAIRED = (
    ONE.format().replace("family: encoder", "family: encoder-decoder").replace("model_type: bert", "model_type: t5")
)
READ = "calibration: {{source: {}}}\nvariants: [{{prune: wanda, sparsity: 0.5}}]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ONE.format() + READ.format("notes.txt"), r"did you mean path:notes\.txt\?"),
        (ONE.format().replace("random", "notes.txt"), r"did you mean path:notes\.txt\?"),
        (ONE.format() + READ.format("random"), r"mine\.yaml:8:(.|\n)*random: untrained weights"),
        (ONE.format() + READ.format("nowhere"), r"mine\.yaml:8:23: calibration.source(.|\n)*nowhere"),
        (ONE.format() + READ.format("'path:rows.jsonl', field: txt"), r"mine\.yaml:8:\d+: calibration.field(.|\n)*txt"),
        (ONE.format() + READ.format("'path:rows.jsonl'"), r"mine\.yaml:8:23: calibration.source(.|\n)*'text'"),
        (ONE.format() + READ.format("'path:notes.txt', field: body"), r"mine\.yaml:8:\d+: calibration.field"),
        (ONE.format() + READ.format("'path:empty.txt'"), r"mine\.yaml:8:\d+: calibration.source(.|\n)*empty\.txt"),
        (
            PAIRED + READ.format("'path:rows.jsonl', field: body, target: nil"),
            r"mine\.yaml:8:\d+: calibration(.|\n)*nil",
        ),
        (
            PAIRED + READ.format("'path:rows.jsonl', target: body"),
            r"mine\.yaml:8:\d+: calibration.target(.|\n)*`field`",
        ),
        (
            ONE.format() + "variants: [{trim: corpus, source: 'path:rows.jsonl', field: [body, nil]}]\n",
            r"mine\.yaml:8:\d+: variants\[0\]\.field(.|\n)*nil",
        ),
        (
            ONE.format() + "variants: [{recover: distill, source: ['path:notes.txt', 'path:rows.jsonl']}]\n",
            r"mine\.yaml:8:\d+: variants\[0\]\.source\[1\](.|\n)*'text'",
        ),
        (
            ONE.format() + "calibration: {source: 'path:rows.jsonl', field: nil}\nvariants: [{recover: distill}]\n",
            r"mine\.yaml:9:\d+: variants\[0\](.|\n)*nil",
        ),
        (ONE.format().replace("random", "path:rows.jsonl"), r"mine\.yaml:5:13: models\[0\](.|\n)*GGUF"),
        (ONE.format().replace("random", "path:void"), r"mine\.yaml:5:13: models\[0\](.|\n)*config\.json"),
        (
            f"{ONE.format().partition('    architecture')[0]}".replace("random", "'random '"),
            r"mine\.yaml:5:13(.|\n)*config",
        ),
    ],
)
def test_what_is_no_source_is_refused_with_what_is_meant(text: str, said: str, tmp_path: Path) -> None:
    files = {"notes.txt": "some words\n", "rows.jsonl": '{"body": "some words"}\n', "empty.txt": ""}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match=said):
        written(tmp_path, text)


SHORT = (
    ONE.format()
    .replace("family: encoder", "family: decoder")
    .replace("model_type: bert", "model_type: gpt2, n_positions: 64")
)


@pytest.mark.parametrize("named", ["n_positions: 64", "n_layer: 2"])
def test_a_calibration_longer_than_the_model_takes_is_refused_with_its_line(named: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some words\n")
    limit = 64 if "positions" in named else 1024
    text = SHORT.replace("n_positions: 64", named)
    more = "calibration: {{source: 'path:text.txt', length: {}}}\nvariants: [{}]\n"
    wanda, magnitude = (f"{{prune: {method}, sparsity: 0.5}}" for method in ("wanda", "magnitude"))
    with pytest.raises(ManifestError, match=rf"mine\.yaml:8:\d+: calibration.length(.|\n)*{limit:,}"):
        written(tmp_path, text + more.format(limit + 1, wanda))
    training = "{recover: finetune, length: 32}"
    for verb in ("recover: distill", "recover: finetune", "shrink: gates, keep: 0.5"):
        longer = f"{{{verb}, length: {limit + 1}}}"
        with pytest.raises(ManifestError, match=rf"mine\.yaml:9:\d+: variants\[0\](.|\n)*length(.|\n)*{limit:,}"):
            written(tmp_path, text + more.format(limit, longer))
    for length, step in ((limit, wanda), (limit + 1, magnitude), (limit + 1, training)):
        assert written(tmp_path, text + more.format(length, step)).plan.cells


def test_a_workload_longer_than_the_model_takes_cannot_run(tmp_path: Path) -> None:
    text = SHORT + "runtime: {engines: hf, workloads: [{prompt: 60, generate: 4}, {prompt: 61, generate: 4}]}\n"
    ready = written(tmp_path, text)
    refused = [cell for cell in ready.plan.cells if cell.id in ready.refused]
    assert {cell.settings["workload"]["prompt"] for cell in refused} == {61} and len(refused) == 2
    assert {problem.line for problem in ready.refused.values()} == {8}


@pytest.mark.parametrize(
    ("entries", "rehearsed"),
    [
        ("{prune: magnitude, pattern: '2:4'}, {prune: magnitude, sparsity: [0.5, 0.7, 0.8]}", 0.7),
        ("{prune: magnitude, pattern: '2:4'}, {prune: magnitude, sparsity: [0.5, 0.9, 0.95, 0.99]}", 0.9),
        ("{prune: magnitude, pattern: '2:4'}", 0.9),
        ("[{prune: magnitude, sparsity: [0.3]}]", 0.3),
    ],
)
def test_a_rehearsal_takes_a_sparsity_that_was_asked_for(tmp_path: Path, entries: str, rehearsed: float) -> None:
    plan = written(tmp_path, f"{ONE.format()}variants: [{entries}]\n", rehearse=True).plan
    assert [variant.record()["sparsity"] for variant in plan.variants.values()] == [0, rehearsed]


def test_random_weights_of_one_shape_are_one_checkpoint_and_are_rehearsed_under_each_name(tmp_path: Path) -> None:
    text = TWO.replace("albert", "bert").format()
    shown = refusal(tmp_path, text)
    assert "`plain` is the same checkpoint as `shared`" in shown and "mine.yaml:9:" in shown
    for full in (False, True):
        plan = written(tmp_path, text, rehearse=True, full=full).plan
        assert {cell.variant.model for cell in plan.cells} == {"plain", "shared"}
    assert written(tmp_path, TWO.format()).plan.cells


def test_a_model_of_the_command_line_has_a_name_that_a_manifest_may_give(tmp_path: Path) -> None:
    for folder, name in {"modèle": "mod-le", "模型": "model", "a b": "a-b", ".ok_1": "ok_1"}.items():
        assert name_of(parse(f"path:{tmp_path / folder}")) == name
