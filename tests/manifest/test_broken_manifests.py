"""Every way to get a manifest wrong: where the error points, what it says, what it proposes."""

import pytest

from tests.manifest.broken import ENTRY, HEAD, MODEL, problems_of

# The text; the line and column of its one problem; words of the message, the expectation and the hint.
BROKEN = {
    "unknown key": (HEAD + "sed: 3", 4, 1, "unknown key `sed`", "`benchmarks`", "did you mean `seed`?"),
    "unknown nested key": (
        ENTRY + "{prune: random, sparsity: 0.5, granularty: row}", 5, 36,
        "unknown key `granularty`", "`granularity`", "did you mean `granularity`?",
    ),
    "underscore for hyphen": (
        HEAD + "benchmarks: {encoder_decoder: [{task: piqa}]}", 4, 14,
        "unknown key `encoder_decoder`", "`encoder-decoder`", "did you mean `encoder-decoder`?",
    ),
    "misspelt required key, told once": (
        MODEL + "{name: m, source: hf:a/m, familly: decoder}", 3, 31,
        "unknown key `familly`", "`family`", "did you mean `family`?",
    ),
    "missing key": (MODEL + "{name: m, source: hf:a/m}", 3, 5, "`family` is missing", "`decoder`", ""),
    "missing version": (
        "models:\n  - {name: m, source: hf:a/m, family: decoder}", 1, 1,
        "`version` is missing", "1", "",
    ),
    "future version": (HEAD.replace("1", "2", 1), 1, 10, "`version` is `2`", "`1`", ""),
    "duplicate key": (
        HEAD + "seed: 1\nseed: 2", 5, 1,
        "`seed` is written twice; the first is on line 4", "once", "remove",
    ),
    "empty models": ("version: 1\nmodels: []", 2, 9, "`models` is an empty list", "at least one", ""),
    "models without a value": ("version: 1\nmodels:", 2, 8, "`models` is empty", "a list", ""),
    "empty sparsity": (
        ENTRY + "{prune: random, sparsity: []}", 5, 31,
        "`sparsity` is an empty list", "at least one", "",
    ),
    "percent as number": (
        ENTRY + "{prune: random, sparsity: [0.1, 50]}", 5, 37,
        "a share of 50", "between 0 and 1", "did you mean 0.5?",
    ),
    "percent as text": (
        ENTRY + "{prune: random, sparsity: 30%}", 5, 31,
        "a share of 30%", "between 0 and 1", "did you mean 0.3?",
    ),
    "a seed too large for a generator": (
        HEAD + f"seed: {2**62}", 4, 7, f"`seed` is `{2**62}`", "a number below 4,611,686,018,427,387,904", "",
    ),
    "text where only the number stands": (
        ENTRY + "{prune: magnitude, pattern: rows, sparsity: 0.5, norm: '2'}", 5, 60,
        "`norm` is `2`", "one of `1`, `2`, `inf`", "without quotes: 2",
    ),
    "several methods in a step": (
        ENTRY + "{prune: [magnitude, random], sparsity: 0.5}", 5, 13,
        "`prune` is a list", "one method a step", "an entry for each",
    ),
    "a pattern within all weights": (
        ENTRY + "{prune: magnitude, granularity: global, pattern: 2:4}", 5, 37,
        "pattern 2:4 cannot be combined with `granularity: global`", "`granularity: layer` or `row`", "",
    ),
    "owl within all weights": (
        ENTRY + "{prune: magnitude, granularity: global, allocation: owl, sparsity: 0.5}", 5, 37,
        "`allocation: owl` cannot be combined with `granularity: global`", "`granularity: layer` or `row`", "",
    ),
    "owl beside a pattern": (
        ENTRY + "{prune: magnitude, allocation: owl, pattern: 2:4}", 5, 36,
        "pattern 2:4 fixes every matrix's sparsity", "`allocation: uniform`", "",
    ),
    "blocks without a sparsity": (
        ENTRY + "{prune: magnitude, pattern: 4x4}", 5, 5, "`sparsity` is missing", "such as [0.5, 0.9]", "",
    ),
    "no sparsity": (ENTRY + "{prune: random}", 5, 5, "`sparsity` is missing", "[0.5, 0.9]", ""),
    "pattern against sparsity": (
        ENTRY + "{prune: random, pattern: 2:4, sparsity: 0.7}", 5, 45,
        "a pattern fixes the sparsity: 2:4 is 0.5", "no `sparsity`", "remove",
    ),
    "pattern upside down": (
        ENTRY + "{prune: random, pattern: [2:4, 4:1]}", 5, 36,
        "`4:1` is no pattern", "N below M", "did you mean 1:4?",
    ),
    "unknown model beside a pattern with its own sparsity": (
        ENTRY + "{prune: random, pattern: 2:4, sparsity: 0.5, models: [n]}", 5, 59,
        "unknown model `n`", "`m`", "",
    ),
    "text for a number": (HEAD + 'seed: "3"', 4, 7, "`seed` is the text `3`", "a whole number", "without quotes: 3"),
    "no is text, not a boolean": (HEAD + "seed: no", 4, 7, "`seed` is the text `no`", "a whole number", ""),
    "true is no number": (HEAD + "seed: true", 4, 7, "`seed` is `true`", "a whole number", ""),
    "digits for text": (
        MODEL + "{name: 010, source: hf:a/m, family: decoder}", 3, 12,
        "`name` is `010`", "text", '"010"',
    ),
    "a name unfit for tables": (
        MODEL + "{name: a b, source: hf:a/m, family: decoder}", 3, 12,
        "`a b` does not fit", "letters", "",
    ),
    "text for a mapping": (HEAD + "runtime: deepspeed", 4, 10, "`runtime` is the text `deepspeed`", "a mapping", ""),
    "list for the whole": ("- 1", 1, 1, "the manifest is a list", "a mapping", ""),
    "zero ranks": (HEAD + "runtime: {ranks: [1, 0]}", 4, 22, "`ranks[1]` is `0`", "a number above 0", ""),
    "too few samples": (HEAD + "runtime: {samples: 3}", 4, 20, "`samples` is `3`", "at least 4", ""),
    "infinite threshold": (HEAD + "structure: {absolute: .inf}", 4, 23, "`absolute` is `.inf`", "finite", ""),
    "unknown family": (
        MODEL + "{name: m, source: hf:a/m, family: decodr}", 3, 39,
        "`family` is `decodr`", "`encoder`", "did you mean `decoder`?",
    ),
    "two models of one name": (
        HEAD + "  - {name: m, source: hf:b/m, family: encoder}", 4, 12,
        "a second model called `m`; the first is on line 3", "a name of its own", "",
    ),
    "filter without a model": (
        ENTRY + "{prune: random, sparsity: 0.5, models: [mm]}", 5, 45,
        "unknown model `mm`", "`m`", "did you mean `m`?",
    ),
    "steps for other models each": (
        HEAD + "  - {name: n, source: hf:a/n, family: decoder}\nvariants:\n"
        "  - [{prune: random, sparsity: 0.5, models: m}, {prune: random, sparsity: 0.6, models: [n]}]", 6, 88,
        "no model is in all of the `models`", "`m` or `n`", "",
    ),
    "a step for no model": (
        ENTRY + "{prune: random, sparsity: 0.5, models: []}", 5, 44,
        "no model is in all of the `models`", "`m`", "",
    ),
    "filter across families": (
        HEAD + "benchmarks: {encoder: [{task: mrpc_pair, models: m}]}", 4, 50,
        "`m` is of family `decoder`", "a model of family `encoder`", "",
    ),
    "unknown method": (
        ENTRY + "{prune: magnitud, sparsity: 0.5}", 5, 13,
        "unknown prune `magnitud`", "`random`, `magnitude`, `wanda`", "did you mean `magnitude`?",
    ),
    "unknown engine": (
        HEAD + "runtime: {engines: [sparse, deepsped]}", 4, 29,
        "unknown engine `deepsped`", "`deepspeed`", "did you mean `deepspeed`?",
    ),
    "unknown format": (
        HEAD + "storage: {formats: pakced}", 4, 20,
        "unknown format `pakced`", "`packed`", "did you mean `packed`?",
    ),
    "dense as a method": (
        ENTRY + "{prune: dense, sparsity: 0.5}", 5, 13,
        "unknown prune `dense`", "`magnitude`", "always part of a run",
    ),
    "unknown task": (
        HEAD + "benchmarks: {decoder: [{task: piqqa}]}", 4, 31,
        "unknown task `piqqa`", "one of", "did you mean `piqa`?",
    ),
    "task of another family": (
        HEAD + "benchmarks: {decoder: [{task: sciq_retrieval}]}", 4, 31,
        "`sciq_retrieval` is for encoder models", "a task for decoder models", "",
    ),
    "runtime for a sparsity not made": (
        ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {sparsity: [0.5, 0.9]}}", 6, 36,
        "no variant has `sparsity: 0.9`", "`0.5`", "",
    ),
    "task for a field that no step has": (
        ENTRY + "{prune: random, sparsity: 0.5}\nbenchmarks: {decoder: [{task: piqa, select: {sparsty: 0.5}}]}", 6, 46,
        "no step of `variants` has `sparsty`", "`sparsity`", "did you mean `sparsity`?",
    ),
    "a switch that no variant has": (
        ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {keep_zeros: true}}", 6, 32,
        "no variant has `keep_zeros: true`", "`false`", "",
    ),
    "nothing selected": (
        ENTRY + "{prune: random, sparsity: 0.5}\nruntime: {select: {sparsity: }}", 6, 29,
        "no variant has `sparsity: null`", "`0.5`", "",
    ),
    "a step without a verb": (ENTRY + "{prun: random}", 5, 5, "no verb", "`prune`", "did you mean `prune`?"),
    "a step that is no mapping": (ENTRY + "random", 5, 5, "a step is a mapping", "prune", ""),
    "a recipe without steps": (ENTRY + "[]", 5, 5, "a recipe without steps", "at least one", ""),
    "a field of a step in a chain": (
        ENTRY + "[{prune: random, sparsity: 0.5}, {prune: magnitude, sparsity: 0.5, granularity: rows}]", 5, 85,
        "`granularity` is `rows`", "`row`", "did you mean `row`?",
    ),
    "one of several runtimes for a sparsity not made": (
        ENTRY + "{prune: random, sparsity: 0.5}\nruntime: [{ranks: 2}, {select: {sparsity: 0.9}}]", 6, 43,
        "no variant has `sparsity: 0.9`", "`0.5`", "",
    ),
    "ranks that no two nodes share equally": (
        HEAD + "runtime: {ranks: [1, 2, 3], nodes: 2}", 4, 36,
        "3 ranks cannot be spread evenly over 2 nodes", "multiples of 2", "leave",
    ),
    "nodes for one rank": (
        HEAD + "runtime: {nodes: 2}", 4, 18, "1 rank cannot be spread evenly over 2 nodes", "multiples of 2", "leave",
    ),
    "masks that are not there": (
        ENTRY + "[{prune: random, sparsity: 0.5}, {prune: mask, file: [none/masks]}]", 5, 59,
        "no such file", "the step reads", "manifest's folder",
    ),
    "masks without a file": (ENTRY + "{prune: mask}", 5, 5, "`file` is missing", "masks.safetensors", ""),
    "unparsable source": (
        MODEL + "{name: m, source: fh:a/m, family: decoder}", 3, 23,
        "fh:a/m", "", "did you mean hf:?",
    ),
    "random without architecture": (
        MODEL + "{name: m, source: random, family: decoder}", 3, 23,
        "`random` weights need an `architecture`", "config.json", "",
    ),
    "architecture without a type": (
        MODEL + "{name: m, source: random, family: decoder, architecture: {a: 1}}", 3, 62,
        "`architecture` has no `model_type`", "`model_type`", "",
    ),
    "family against architecture": (
        MODEL + "{name: m, source: hf:a/m, family: decoder, architecture: {model_type: t5}}", 3, 39,
        "`decoder`, but `architecture` (model_type `t5`)", "`encoder-decoder`", "correct",
    ),
    "source of a wrong type": (
        MODEL + "{name: m, source: 5, family: decoder}", 3, 23,
        "`source` is `5`", "text", '"5"',
    ),
    "not closed": (HEAD + "seed: [1,\nname: x", 5, 8, "(it begins on line 4)", "", "close"),
    "quote not closed": (HEAD + "name: 'x\nseed: 1\n", 6, 1, "(it begins on line 4)", "", "close"),
    "tab": (HEAD + "storage:\n\tkeep: none", 5, 1, "'\\t'", "", "spaces"),
    "colon in plain text": (HEAD + "name: a: b", 4, 8, "not allowed here", "", "quote"),
    "indentation": ("version: 1\nmodels:\n  - name: m\n   source: hf:a/m", 4, 4, "not YAML", "", "indent"),
    "unknown alias": (HEAD + "seed: *s", 4, 7, "undefined alias 's'", "", "close"),
    "alias in itself": (HEAD + "variants: &s [*s]", 4, 11, "an alias inside the value", "", "write the value out"),
    "tag": (HEAD + "seed: !!python/name:os.system x", 4, 7, "does not fit here", "without a tag", "remove"),
    "key that is a list": (HEAD + "? [a]\n: 1", 4, 3, "used as a key", "text", "quotes"),
    "merge key": (
        HEAD + "calibration: &c {samples: 3}\noutputs: {<<: *c, length: 5}", 5, 11,
        "`<<` merges nothing", "the keys themselves", "write the keys out",
    ),
    "two documents": (HEAD + "---\nseed: 1", 4, 1, "another document", "", "close"),
    "control character": (HEAD + "name: a\x07", 4, 8, "U+0007", "", "remove"),
    "brackets without end": ("[" * 3000, 1, 101, "more than 100 levels", "", "close"),
    "empty": ("# nothing\n", 0, 0, "the manifest is empty", "", "sparsebench init"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_one_problem_with_its_place(case: str) -> None:
    text, line, column, message, expected, hint = BROKEN[case]
    found = problems_of(text).problems
    assert len(found) == 1, [problem.render() for problem in found]
    problem = found[0]
    assert (problem.line, problem.column) == (line, column), problem.render()
    assert message in problem.message
    assert expected in problem.expected
    assert bool(expected) == bool(problem.expected), problem.expected
    assert hint in problem.hint
    assert bool(hint) == bool(problem.hint), problem.hint


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    shape = """version: 1
seed: 1
seed: x
models:
  - {name: m, source: fh:x, family: decoder, dtyp: auto}
benchmarks:
  decoder: [{task: nope, limit: 0, models: n}]
"""
    error = problems_of(shape)
    assert [(problem.line, problem.key) for problem in error.problems] == [
        (3, "seed"),
        (5, "models[0].dtyp"),
        (7, "benchmarks.decoder[0].limit"),
    ]
    assert str(error).startswith("3 problems in m.yaml\n\nm.yaml:3:1: seed\n")
    assert error.exit_code == 2
    names = """version: 1
models:
  - {name: m, source: fh:x, family: decoder}
variants:
  - {prune: magnitud, pattern: 2:4, sparsity: 0.7, granularty: row}
benchmarks:
  decoder: [{task: nope, limit: 1, models: n}]
runtime: {engines: deepsped}
"""
    assert [(problem.line, problem.key) for problem in problems_of(names).problems] == [
        (3, "models[0].source"),
        (5, "variants[0].prune"),
        (7, "benchmarks.decoder[0].task"),
        (7, "benchmarks.decoder[0].models"),
        (8, "runtime.engines"),
    ]
