"""Every way to get a manifest wrong: where the error points, what it says, what it proposes."""

import pytest

from tests.manifest.loading import ENTRY, HEAD, MODEL, problems_of

BROKEN = [
    (HEAD + "▸sed: 3", "unknown key `sed`", "mean `seed`?"),
    (ENTRY + "{prune: random, sparsity: 0.5, ▸granularty: row}", "`granularty`", "mean `granularity`?"),
    (HEAD + "benchmarks: {▸encoder_decoder: [{task: piqa}]}", "`encoder_decoder`", "mean `encoder-decoder`?"),
    (MODEL + "{name: m, source: hf:a/m, ▸familly: decoder}", "`familly`", "mean `family`?"),
    (MODEL + "▸{name: m, source: hf:a/m}", "`family` is missing", "`decoder`"),
    ("▸models:\n  - {name: m, source: hf:a/m, family: decoder}", "`version` is missing", "1"),
    ("version: ▸2\nmodels:\n  - {name: m, source: hf:a/m, family: decoder}\n", "`version` is `2`", "`1`"),
    (HEAD + "seed: 1\n▸seed: 2", "twice; the first is on line 4", "remove"),
    ("version: 1\nmodels: ▸[]", "an empty list", "at least one"),
    ("version: 1\nmodels:▸", "`models` is empty", "a list"),
    (ENTRY + "{prune: random, sparsity: ▸[]}", "an empty list", "at least one"),
    (ENTRY + "{prune: random, sparsity: [0.1, ▸50]}", "a share of 50", "mean 0.5?"),
    (ENTRY + "{prune: random, sparsity: ▸30%}", "a share of 30%", "mean 0.3?"),
    (HEAD + "seed: ▸4611686018427387904", "`seed` is `4611686018427387904`", "below 4,611,686,018,427,387,904"),
    (ENTRY + "{prune: magnitude, pattern: rows, sparsity: 0.5, norm: ▸'2'}", "`norm` is `2`", "without quotes: 2"),
    (ENTRY + "{prune: ▸[magnitude, random], sparsity: 0.5}", "`prune` is a list", "an entry for each"),
    (ENTRY + "{prune: magnitude, granularity: ▸global, pattern: 2:4}", "pattern 2:4", "`granularity: layer`"),
    (ENTRY + "{prune: magnitude, granularity: ▸global, allocation: owl, sparsity: 0.5}",
     "`allocation: owl`", "`granularity: layer`"),
    (ENTRY + "{prune: magnitude, allocation: ▸owl, pattern: 2:4}", "pattern 2:4", "`allocation: uniform`"),
    (ENTRY + "▸{prune: magnitude, pattern: 4x4}", "`sparsity` is missing", "[0.5, 0.9]"),
    (ENTRY + "▸{prune: random}", "`sparsity` is missing", "[0.5, 0.9]"),
    (ENTRY + "{prune: random, pattern: 2:4, sparsity: ▸0.7}", "2:4 is 0.5", "remove"),
    (ENTRY + "{prune: random, pattern: [2:4, ▸4:1]}", "`4:1` is no pattern", "mean 1:4?"),
    (ENTRY + "{prune: random, pattern: 2:4, sparsity: 0.5, models: [▸n]}", "`n`", "`m`"),
    (HEAD + 'seed: ▸"3"', "`seed` is the text `3`", "without quotes: 3"),
    (HEAD + "seed: ▸no", "`seed` is the text `no`", "a whole number"),
    (HEAD + "seed: ▸true", "`seed` is `true`", "a whole number"),
    (MODEL + "{name: ▸010, source: hf:a/m, family: decoder}", "`name` is `010`", '"010"'),
    (MODEL + "{name: ▸a b, source: hf:a/m, family: decoder}", "`a b` does not fit", "letters"),
    (HEAD + "runtime: ▸deepspeed", "`runtime` is the text `deepspeed`", "a mapping"),
    ("▸- 1", "the manifest is a list", "a mapping"),
    (HEAD + "runtime: {ranks: [1, ▸0]}", "`ranks[1]` is `0`", "a number above 0"),
    (HEAD + "runtime: {processes: ▸100000}", "`processes` is `100000`", "1,024"),
    (HEAD + "runtime: {ranks: [1, ▸4096]}", "`ranks[1]` is `4096`", "1,024"),
    (HEAD + "runtime: {ranks: 2, nodes: ▸2000}", "`nodes` is `2000`", "1,024"),
    (HEAD + "benchmarks: {decoder: [{task: piqa, num_fewshot: ▸5000}]}", "`5000`", "1,024"),
    (HEAD + "runtime: {samples: ▸3}", "`samples` is `3`", "at least 4"),
    (HEAD + "structure: {absolute: ▸.inf}", "`absolute` is `.inf`", "finite"),
    (MODEL + "{name: m, source: hf:a/m, family: ▸decodr}", "`family` is `decodr`", "mean `decoder`?"),
    (HEAD + "  - {name: ▸m, source: hf:b/m, family: encoder}", "`m`; the first is on line 3"),
    (ENTRY + "{prune: random, sparsity: 0.5, models: [▸mm]}", "`mm`", "mean `m`?"),
    (HEAD + "  - {name: n, source: hf:a/n, family: decoder}\nvariants:\n"
     "  - [{prune: random, sparsity: 0.5, models: m}, {prune: random, sparsity: 0.6, models: ▸[n]}]",
     "all of the `models`", "`m` or `n`"),
    (ENTRY + "{prune: random, sparsity: 0.5, models: ▸[]}", "all of the `models`", "`m`"),
    (HEAD + "benchmarks: {encoder: [{task: mrpc_pair, models: ▸m}]}", "family `decoder`", "`encoder`"),
    (ENTRY + "{prune: ▸magnitud, sparsity: 0.5}", "`magnitud`", "mean `magnitude`?"),
    (HEAD + "runtime: {engines: [sparse, ▸deepsped]}", "`deepsped`", "mean `deepspeed`?"),
    (HEAD + "storage: {formats: ▸pakced}", "`pakced`", "mean `packed`?"),
    (ENTRY + "{prune: ▸dense, sparsity: 0.5}", "`dense`", "always part of a run"),
    (HEAD + "benchmarks: {decoder: [{task: ▸piqqa}]}", "`piqqa`", "mean `piqa`?"),
    (HEAD + "benchmarks: {decoder: [{task: ▸sciq_retrieval}]}", "`sciq_retrieval`", "decoder"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {sparsity: [0.5, ▸0.9]}}", "`sparsity: 0.9`", "`0.5`"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nbenchmarks: {decoder: [{task: piqa, select: {▸sparsty: 0.5}}]}",
     "`sparsty`", "mean `sparsity`?"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {keep_zeros: ▸true}}", "`keep_zeros: true`", "`false`"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {keep_zeros: ▸0}}", "`keep_zeros: 0`", "`false`"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {sparsity:▸ }}", "`sparsity: null`", "`0.5`"),
    (ENTRY + "▸{prun: random}", "no verb", "mean `prune`?"),
    (ENTRY + "▸random", "a step is a mapping", "prune"),
    (ENTRY + "▸[]", "a recipe without steps", "at least one"),
    (ENTRY + "[{prune: random, sparsity: 0.5}, {prune: magnitude, sparsity: 0.5, granularity: ▸rows}]",
     "`granularity` is `rows`", "mean `row`?"),
    (ENTRY + "{prune: random, sparsity: 0.5}\nruntime: [{ranks: 2}, {select: {sparsity: ▸0.9}}]",
     "`sparsity: 0.9`", "`0.5`"),
    (HEAD + "runtime: {ranks: [1, 2, 3], nodes: ▸2}", "3 ranks", "leave"),
    (HEAD + "runtime: {nodes: ▸2}", "1 rank", "leave"),
    (ENTRY + "[{prune: random, sparsity: 0.5}, {prune: mask, file: [▸none/masks]}]",
     "no such file", "manifest's folder"),
    (ENTRY + "▸{prune: mask}", "`file` is missing", "masks.safetensors"),
    (MODEL + "{name: m, source: ▸fh:a/m, family: decoder}", "fh:a/m", "mean hf:?"),
    (MODEL + "{name: m, source: ▸random, family: decoder}", "`architecture`", "config.json"),
    (MODEL + "{name: m, source: random, family: decoder, architecture: ▸{a: 1}}", "`model_type`", "`model_type`"),
    (MODEL + "{name: m, source: hf:a/m, family: ▸decoder, architecture: {model_type: t5}}",
     "(model_type `t5`)", "correct"),
    (MODEL + "{name: m, source: ▸5, family: decoder}", "`source` is `5`", '"5"'),
    (HEAD + "seed: [1,\nname: x▸", "(it begins on line 4)", "close"),
    (HEAD + "name: 'x\nseed: 1\n▸", "(it begins on line 4)", "close"),
    (HEAD + "storage:\n▸\tkeep: none", "'\\t'", "spaces"),
    (HEAD + "name: a▸: b", "not allowed here", "quote"),
    (MODEL + "name: m\n   ▸source: hf:a/m", "not YAML", "indent"),
    (HEAD + "seed: ▸*s", "undefined alias 's'", "close"),
    (HEAD + "variants: ▸&s [*s]", "an alias inside the value", "write the value out"),
    (HEAD + "seed: ▸!!python/name:os.system x", "does not fit here", "remove"),
    (HEAD + "? ▸[a]\n: 1", "used as a key", "quotes"),
    (HEAD + "calibration: &c {samples: 3}\noutputs: {▸<<: *c, length: 5}", "`<<` merges nothing", "write the keys out"),
    (HEAD + "▸---\nseed: 1", "another document", "close"),
    (HEAD + "name: a▸\x07", "U+0007", "remove"),
    ("[" * 100 + "▸" + "[" * 2900, "more than 100 levels", "close"),
    ("# nothing\n", "the manifest is empty", "sparsebench init"),
]  # fmt: skip
"""The text, with ▸ at the place of its one problem; words of what is shown: the culprit, and the way out."""


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case[1])
def test_one_problem_with_its_place(case: tuple[str, ...]) -> None:
    marked, *words = case
    before, _, after = marked.rpartition("▸")
    (problem,) = problems_of(before + after).problems
    place = (before.count("\n") + 1, len(before) - before.rfind("\n")) if before or marked[:1] == "▸" else (0, 0)
    assert (problem.line, problem.column) == place, problem.render()
    said = f"{problem.message} {problem.expected} {problem.hint}"
    assert [word for word in words if word not in said] == [], said


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    shape = f"""seed: 1\nseed: x
{MODEL}{{name: m, source: fh:x, family: decoder, dtyp: auto}}
benchmarks:
  decoder: [{{task: nope, limit: 0, models: n}}]
"""
    error = problems_of(shape)
    found = [(problem.line, problem.key) for problem in error.problems]
    assert found == [(2, "seed"), (5, "models[0].dtyp"), (7, "benchmarks.decoder[0].limit")]
    assert str(error).startswith("3 problems in m.yaml\n\nm.yaml:2:1: seed\n") and error.exit_code == 2
    names = f"""{MODEL}{{name: m, source: fh:x, family: decoder}}
variants:
  - {{prune: magnitud, pattern: 2:4, sparsity: 0.7, granularty: row}}
benchmarks:
  decoder: [{{task: nope, limit: 1, models: n}}]
runtime: {{engines: deepsped}}
"""
    assert [(problem.line, problem.key) for problem in problems_of(names).problems] == [
        (3, "models[0].source"), (5, "variants[0].prune"), (7, "benchmarks.decoder[0].task"),
        (7, "benchmarks.decoder[0].models"), (8, "runtime.engines"),
    ]  # fmt: skip


def test_a_manifest_is_not_named_as_the_file_of_its_revisions() -> None:
    (problem,) = problems_of(f"{MODEL}{{name: m, source: random, family: decoder}}\n", "m.lock").problems
    assert problem.path == "m.lock" and "revisions" in problem.message and "m.yaml" in problem.hint
