from pathlib import Path

import pytest

from sparsebench.benchmarks import all_tasks, index, is_task, task_names


def test_names_of_both_kinds_are_known():
    for name in ("piqa", "mrpc_pair", "hellaswag", "mmlu", "lambada_openai", "scrolls_qasper"):
        assert is_task(name)
    assert not is_task("helaswag")
    assert not is_task("")
    listed = task_names()
    assert listed[: len(all_tasks())] == tuple(all_tasks())
    assert len(listed) == len(set(listed)) > 10_000


def test_what_a_task_file_declares(tmp_path: Path):
    texts = {
        "plain.yaml": "task: plain # a remark\ndataset_path: x\n",
        "quoted.yaml": "\"task\": 'quoted name'\n",
        "sub/inherits.yaml": "include: ../_base.yaml\ndescription: y\n",
        "_base.yaml": "output_type: z\ntask: base\n",
        "group.yaml": "group: flock\ntask:\n  - plain\n",
        "class.yaml": "group: flock\ntask: made\nclass: !function task.Made\n",
        "nothing.yaml": "aggregate: mean\n  task: nested\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert index._scan(tmp_path) == {
        "base": "_base.yaml",
        "made": "class.yaml",
        "flock": index.GROUP,
        "plain": "plain.yaml",
        "quoted name": "quoted.yaml",
    }


@pytest.mark.slow
@pytest.mark.long
def test_the_index_is_lm_evals_own():
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    found = index.stock_files()
    # `scrolls` is a group that lm-eval's own scan does not list.
    assert set(found) - {"scrolls"} == set(manager.all_subtasks) | set(manager.all_groups)
    root = index.tasks_folder()
    for name, file in found.items():
        if file:
            assert manager.task_index[name].yaml_path == root / file
