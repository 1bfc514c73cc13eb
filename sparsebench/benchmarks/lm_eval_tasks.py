"""The rows of lm-eval's tasks whose data comes out of a package; ``tasks/NAME.yaml`` says where each lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.benchmarks.task import Benchmark, ChanceRule

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family

FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder", "encoder")
"""An encoder needs a masked-language-model head."""


def _lm_eval(
    name: str,
    metric: str,
    n: int,
    description: str,
    chance: ChanceRule = "1/choices",
    examples: str = "",
    parts: int = 1,
) -> Benchmark:
    return Benchmark(name, FAMILIES, "harness", metric, chance, n, description, examples=examples, parts=parts)


LM_EVAL_TASKS = (
    _lm_eval("piqa", "acc", 1838, "physical common sense, 2 answers; validation split, as stock lm-eval"),
    _lm_eval("arc_easy", "acc_norm", 570, "school science, 4 answers; validation split (stock lm-eval: test, 2,376)"),
    _lm_eval("arc_challenge", "acc_norm", 1172, "harder school science, 4 answers; test split"),
    _lm_eval("hellaswag", "acc_norm", 10042, "how a scene goes on, 4 answers; validation split"),
    _lm_eval("winogrande", "acc", 1267, "what a pronoun means, 2 answers; validation split"),
    _lm_eval("openbookqa", "acc_norm", 500, "elementary science, 4 answers; test split"),
    _lm_eval(
        "sciq",
        "acc",
        1000,
        "science with a passage, 4 answers; validation split (stock lm-eval: test, 1,000 others)",
    ),
    _lm_eval("lambada_openai", "acc", 5153, "the last word of a passage, open; test split", "open"),
    _lm_eval(
        "mmlu",
        "acc",
        14042,
        "57 subjects, 4 answers; test split; a limit is one of each subject",
        examples="dev",
        parts=57,
    ),
    _lm_eval("boolq", "acc", 3270, "yes or no about a passage; validation split", "majority"),
    _lm_eval("copa", "acc", 100, "cause or effect, 2 answers; validation split"),
    _lm_eval("cb", "acc", 56, "entailment, 3 classes; validation split", "majority"),
    _lm_eval("rte", "acc", 277, "entailment, 2 classes; validation split", "majority"),
    _lm_eval("mrpc", "acc", 408, "paraphrases, 2 classes; validation split", "majority"),
    _lm_eval("sst2", "acc", 872, "sentiment, 2 classes; validation split", "majority"),
)
