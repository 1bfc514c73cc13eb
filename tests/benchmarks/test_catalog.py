import subprocess
import sys
from importlib import import_module

import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from sparsebench import sources
from sparsebench.benchmarks import TaskSpec, all_tasks, data_sources, own
from sparsebench.benchmarks.catalog import definition
from sparsebench.benchmarks.index import stock_files, tasks_folder
from sparsebench.benchmarks.scoring import check
from sparsebench.errors import BenchmarkError

HARNESS = [name for name, task in all_tasks().items() if task.adapter == "harness"]


def test_the_table_is_read_without_heavy_imports():
    heavy = "{'torch', 'transformers', 'lm_eval', 'datasets', 'numpy', 'scipy', 'sklearn', 'pyarrow', 'yaml'}"
    code = (
        f"import sys; from sparsebench.benchmarks import all_tasks, is_task; print(sorted({heavy} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", all_tasks())
def test_every_source_is_pinned_and_every_adapter_exists(name: str):
    task = all_tasks()[name]
    for text in data_sources(name):
        source = sources.parse(text)
        assert source.text == text
        assert all(part.sha256 for part in source.parts)
    assert data_sources(name) or task.hub
    adapter = import_module(f"sparsebench.benchmarks.{task.adapter}")
    assert any(hasattr(adapter, name) for name in ("score", "Generation", "Harness", "Perplexity"))


@pytest.mark.parametrize("name", HARNESS)
def test_our_definition_is_the_stock_one_but_for_the_data(name: str):
    ours, task = definition(name), all_tasks()[name]
    data = {"dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset"}
    assert set(ours) <= {"include", "training_split", "validation_split", "test_split", *data}
    assert all(ours[key] is None for key in ours if key.endswith("_split"))
    theirs = load_yaml(tasks_folder() / ours["include"], resolve_func=False)
    assert theirs.get("group" if task.parts > 1 else "task") == name
    if task.parts > 1:
        theirs = load_yaml(tasks_folder() / ours["include"].replace("_mmlu", "mmlu_anatomy"), resolve_func=False)
    assert task.metric in [entry["metric"] for entry in theirs["metric_list"]]
    split, *examples = ours["dataset_kwargs"]["data_files"]
    assert split in (theirs.get("test_split"), theirs.get("validation_split"))
    assert (split == (theirs.get("test_split") or theirs["validation_split"])) is (name not in ("arc_easy", "sciq"))
    assert examples == ([theirs["fewshot_split"]] if task.examples else [])


def test_encoder_names_are_not_lm_evals():
    assert not [name for name in all_tasks() if name not in HARNESS and name in stock_files()]


@pytest.mark.parametrize(
    ("task", "fitting", "others"),
    [
        ("piqa", ["decoder", "encoder-decoder", "encoder"], []),
        ("hellaswag", ["decoder", "encoder"], []),
        ("perplexity", ["decoder"], ["encoder", "encoder-decoder"]),
        ("pseudo_perplexity", ["encoder"], ["decoder"]),
        ("g2p", ["encoder-decoder"], ["decoder"]),
        ("g2p_per", ["encoder-decoder"], []),
        ("mrpc_pair", ["encoder"], ["decoder"]),
        ("glue_rte", ["encoder"], []),
    ],
)
def test_task_and_family(task: str, fitting: list[str], others: list[str]):
    for family in fitting:
        check(TaskSpec(task), family)
    for family in others:
        with pytest.raises(BenchmarkError, match=f"{task}.*{family}"):
            check(TaskSpec(task), family)


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        *((task, "num_fewshot") for task in ("mrpc_pair", "perplexity", "pseudo_perplexity", "g2p")),
        ("piqa", "divergence"),
    ],
)
def test_a_setting_that_a_task_does_not_take_is_named(task: str, setting: str):
    with pytest.raises(BenchmarkError, match=f"{task} takes no `{setting}`"):
        check(TaskSpec(task, **{setting: 3}), all_tasks()[task].families[0])


def test_a_task_is_called_after_its_data():
    packaged = "wheel:a==1!x/part1.bin + b==1!x/part2.bin as letters.jsonl"
    sources_by_name = {
        "perplexity-notes": "path:/data/notes.v2.jsonl",
        "perplexity-letters": packaged,
        "perplexity-random": "random",  # no text, which whoever reads it says
    }
    for name, source in sources_by_name.items():
        assert own.default_name("perplexity", sources.parse(source)) == name
    names = {own.default_name("perplexity", sources.parse(f"path:{name}.jsonl")) for name in ("данные", "тексты")}
    assert len(names) == 2 and all(name.removeprefix("perplexity-") for name in names)
