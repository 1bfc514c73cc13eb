"""Hostile folders of lm-eval's task files, made from a harmless one.

Nothing outside is read, nobody is asked, and each is refused by the name of its file and key, within 5 seconds of CPU.
"""

import gzip
import json
import os
import pickle
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sparsebench import sources
from sparsebench.benchmarks import OwnData, TaskSpec, kind_of
from sparsebench.benchmarks.harness import Harness
from sparsebench.benchmarks.own import content
from sparsebench.errors import SparsebenchError
from sparsebench.models.modules.load import load_model
from tests.adversarial.watch import audited, cheap
from tests.command import call
from tests.sampling import a_third

SECRET = "swordfish-71"
RECORD = {"q": "the cat", "options": ["cat", "dog", "tree"], "right": 0, "answer": "a" * 40 + "b"}
TASK: dict[str, Any] = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "right",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
WRITES = {
    "output_type": "generate_until",
    "doc_to_choice": None,
    "doc_to_target": "answer",
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "generation_kwargs": {"max_gen_toks": 16, "until": []},
}
"""What makes TASK a task whose answers are written."""
MANY = {"data.jsonl": "\n".join(json.dumps(RECORD | {"n": n}) for n in range(120))}
Stored = str | bytes | Callable[[Path], Any]


@dataclass(frozen=True)
class Case:
    """A folder: changes to TASK, or the text of its file; other files; words of its refusal (none: it is harmless)."""

    name: str
    words: tuple[str, ...]
    changes: dict[Any, Any] | str | bytes
    files: dict[str, Stored] = field(default_factory=dict)


CASES: list[Case] = []


def refused(
    name: str, key: str, changes: Any, files: dict[str, Stored] | None = None, where: str = "quiz.yaml"
) -> None:
    CASES.append(Case(name, (where, key), changes, files or {}))


def data(files: Any, **more: Any) -> dict[str, Any]:
    return {"dataset_kwargs": {"data_files": files, **more}}


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target.replace("OUTSIDE", str(outside(path))))


def outside(path: Path) -> Path:
    """The folder beside that of the task, with what nobody may read."""
    return next(parent for parent in path.parents if parent.name == "tasks").parent / "outside"


class Code:
    """Unpickled, it makes a file in the current folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran", "w")


# What reads the data.
for builder in ("pickle", "OUTSIDE/script.py", "allenai/ai2_arc", "http://127.0.0.1:9/x", "", ["json"]):
    changes = {"dataset_path": builder, **data({"test": "data.pkl"})}
    refused(f"dataset_path {builder}", "dataset_path", changes, {"data.pkl": pickle.dumps(Code())})
refused("dataset_path missing", "dataset_path", {"dataset_path": None})

# Which files are data.
for path in (
    "OUTSIDE/secret.jsonl", "sub/../../outside/secret.jsonl", "**", "~/secret.jsonl", "file://OUTSIDE/secret.jsonl",
    "http://127.0.0.1:9/x.jsonl", "zip://secret.jsonl::OUTSIDE/secret.zip", "/dev/zero", "", "a\0b", "x" * 5000, 5,
    ["data.jsonl", "../outside/secret.jsonl"],
):  # fmt: skip
    refused(f"data_files {str(path)[:60]!r}", "data_files", data({"test": path}), {"sub/x.jsonl": ""})
for name, files in {
    "a text": "../outside/secret.jsonl", "nothing": {}, "20,000": ["data.jsonl"] * 20_000,
    "another split": {"test": "data.jsonl", "train": "../outside/secret.jsonl"},
}.items():  # fmt: skip
    refused(f"data_files as {name}", "dataset_kwargs" if name == "20,000" else "data_files", data(files))
for name, link_or_pipe in {
    "link.jsonl": link("OUTSIDE/secret.jsonl"), "round": link("round"), "pipe.jsonl": os.mkfifo,
}.items():  # fmt: skip
    refused(f"{name} that leads elsewhere", name, data({"test": name}), {name: link_or_pipe}, where="")
HIDDEN: dict[str, Stored] = {".h/link.jsonl": link("OUTSIDE/secret.jsonl")}
refused("a hidden link", "data_files", data({"test": ".h/link.jsonl"}), HIDDEN)
for key, value in {"cache_dir": "../outside", "storage_options": {"a": 1}, "sep": "(a+)+$", "path": "pandas"}.items():
    refused(f"dataset_kwargs {key}", f"dataset_kwargs.{key}", data({"test": "data.jsonl"}, **{key: value}))
refused("data_dir nowhere", "data_dir", {"dataset_kwargs": {"data_dir": "nowhere"}})
refused("dataset_kwargs as a list", "dataset_kwargs", {"dataset_kwargs": ["json"]})

# What a file includes, and what a group is made of: checked once more when lm-eval has merged it.
for path in ("../outside/outside.yaml", "http://127.0.0.1:9/x.yaml", 5, "a\0b.yaml", "x" * 5000, "/dev/zero"):
    refused(f"include {str(path)[:60]!r}", "include", {"include": path})
refused("include in a circle", "include", {"include": "a.yaml"}, {"a.yaml": "include: quiz.yaml"}, where="a.yaml")
refused("include many times", "include", {"include": ["a.yaml"] * 1000}, {"a.yaml": "description: x"})
INCLUDED: dict[str, Stored] = {"a.yaml": "include: b.yaml", "b.yaml": "dataset_path: pandas"}
refused("include of an include", "dataset_path", {"include": "a.yaml", "dataset_path": None}, INCLUDED, where="b.yaml")
PLAIN: dict[str, Stored] = {"plain.yaml": yaml.safe_dump(TASK | {"task": "plain"})}
for name, member in {
    "a new task": TASK | {"task": "new", "dataset_path": "pandas"},
    "a changed task": {"task": "plain", "dataset_path": "OUTSIDE"},
    "a group of a new task": {"group": "inner", "task": [TASK | {"task": "new", "dataset_path": "a/b"}]},
    "a group that changes": {"group": "inner", "dataset_path": "pandas", "task": ["plain"]},
}.items():
    refused(f"group of {name}", "dataset_path", yaml.safe_dump({"group": "quiz", "task": [member]}), PLAIN)
MULTIPLY = "group: quiz\ntask: [g0, g0, g0, g0, g0, g0, g0, g0, g0, g0]"
for name, key, text, files in (
    ("data", "data_files", "group: quiz\ntask: [plain]\ndataset_kwargs: {data_files: ../outside/secret.jsonl}", PLAIN),
    ("repeats", "repeats", "group: quiz\ntask: [plain]\nrepeats: 1000000000", PLAIN),
    ("itself by another", "group", "group: quiz\ntask: [b]", {"b.yaml": "group: b\ntask: [{group: quiz}]"}),
    ("the same name", "group", "group: quiz\ntask: [plain]", PLAIN | {"z.yaml": "group: quiz\ntask: [plain]"}),
    ("ten by ten", "group", MULTIPLY, {f"{n}.yaml": f"group: g{n}\ntask: {[f'g{n + 1}'] * 10}" for n in range(12)}),
    ("ten by ten included", "group", MULTIPLY, {f"{n}.yaml": f"group: g{n}\ninclude: m{n}.yaml" for n in range(12)}
     | {f"m{n}.yaml": f"task: {[f'g{n + 1}'] * 10}" for n in range(12)}),
):  # fmt: skip
    refused(f"group: {name}", key, text, dict(files), where="tasks")

# Code, by every name that lm-eval and transformers give it.
RUNS: dict[str, Stored] = {"utils.py": "open('ran', 'w')"}
for line in (
    "process_docs: !function utils.process", "metadata: !!python/object/apply:os.system [x]", "metadata: !!python/name:os.system",
):  # fmt: skip
    refused(line, "quiz.yaml:", yaml.safe_dump(TASK) + line, RUNS)
for key in ("class", "custom_dataset", "process_results"):
    refused(key, key, {key: "utils.process"}, RUNS)
refused("unsafe_code", "unsafe_code", {"unsafe_code": True})
refused("a key that is a number", "5", {5: "x"})
for entry in ({"metric": "acc", "hf_evaluate": True}, {"metric": "./script"}, {"metric": ["acc"]}, "acc"):
    refused(f"metric_list {entry}", "metric", {"metric_list": [entry]})
for step in ({"function": "custom", "filter_fn": "os.system"}, {"function": "nosuch"}, {}):
    refused(f"filter_list {step}", "filter_fn" if "filter_fn" in step else "function",
            {"filter_list": [{"name": "x", "filter": [step]}]})  # fmt: skip
for key, value in {"process_docs": "x", "samples": "x", "extra": 1}.items():
    refused(f"fewshot_config {key}", f"fewshot_config.{key}", {"fewshot_config": {key: value}})
for key, value in {
    "custom_generate": "../outside", "trust_remote_code": True, "max_gen_toks": 10**9, "until": "x" * 100_000,
}.items():  # fmt: skip
    refused(f"generation_kwargs {key}", f"generation_kwargs.{key}", WRITES | {"generation_kwargs": {key: value}})
refused("until of 5,000 texts", "generation_kwargs.until", WRITES | {"generation_kwargs": {"until": ["x"] * 5000}})

# Numbers and sizes.
for key, text in {"repeats": "1000000000", "num_fewshot": "0x" + "f" * 9000}.items():
    refused(f"{key} {text[:12]}", key, yaml.safe_dump(TASK) + f"{key}: {text}")
refused("more examples than documents", "num_fewshot", {"num_fewshot": 100, "fewshot_split": "test"})
refused("5,000 choices", "doc_to_choice", {"doc_to_choice": ["x"] * 5000})
refused("metadata of 9,000", "metadata", {"metadata": {str(n): [n] for n in range(9000)}})
WRITTEN = yaml.safe_dump(TASK) + f"metadata: [&a {'x' * 200_000}, *a, *a, *a, *a, *a]"
refused("metadata written out", "metadata", WRITTEN)

# Templates.
LOOPS = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
LONG = "{% set x = 'x' * 90000 %}"
TEMPLATES = {
    "nested loops": LOOPS,
    "list multiplication": "{{ ([0] * 3000000000) | length }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "join": LONG + "{{ ([x] * 90000) | join }}",
    "regex_replace": "{{ answer | regex_replace('(a+)+$', '') }}",
    "python": "{{ q.__class__.__mro__ }}",
    "include": "{% include '/etc/passwd' %}",
    "no template": "{{ q",
}
for name, template in TEMPLATES.items():
    refused(f"doc_to_text: {name}", "doc_to_text", {"doc_to_text": template})
for key, name in (("doc_to_target", "nested loops"), ("description", "doubling")):
    refused(f"{key}: {name}", key, WRITES | {key: TEMPLATES[name]})
for name, template in {
    "brackets": "[" * 100_000, "many": "{{ ['x'] * 20000 }}", "minus": "{{ '-' * 90000 }}1",
    "code": "{{ '__import__(\"os\").system(\"touch ran\")' }}",
}.items():  # fmt: skip
    refused(f"doc_to_choice: {name}", "doc_to_choice", {"doc_to_choice": template})
refused("doc_to_choice: a number", "quiz", {"doc_to_choice": "5"})
SHOTS = {"num_fewshot": 1, "fewshot_split": "test", "doc_to_target": "{{right}}"}
refused("fewshot_config: doc_to_text", "doc_to_text", SHOTS | {"fewshot_config": {"doc_to_text": LOOPS}}, dict(MANY))
WIDE = SHOTS | {"num_fewshot": 90, "doc_to_text": "{{ 'x ' * 40000 }}"}
refused("examples of 80,000 letters", "num_fewshot", WIDE, dict(MANY))
SLOW = "{% set n = namespace(x=0) %}{% for a in range(90000) %}{% set n.x = a %}{% endfor %}{{ q }}"
TIMES: dict[str, Stored] = {"data.jsonl": f"{json.dumps(RECORD)}\n" * 10_000}
refused("ten thousand slow templates", "doc_to_text", {"doc_to_text": SLOW}, TIMES)

# Patterns: dear ones on whatever the model writes and on the right answer, and such as are none.
for name, step in {
    "dear": {"function": "regex", "regex_pattern": r"((.|\s)*)*((.|\s)*)*((.|\s)*)*\Zx"},
    "nested": {"function": "regex", "regex_pattern": "(" * 5000},
    "no choices": {"function": "multi_choice_regex", "regex_pattern": "x"},
    "too few": {"function": "take_first_k", "k": 5},
}.items():
    refused(f"filter_list: {name}", "filter_list", WRITES | {"filter_list": [{"name": "x", "filter": [step]}]})
for name, pattern in {"dear": "(a+)+$", "none": "["}.items():
    entry = {"metric": "exact_match", "regexes_to_ignore": [pattern]}
    refused(f"regexes_to_ignore: {name}", "metric_list", WRITES | {"metric_list": [entry]})

# YAML itself.
for name, text in {
    "aliases": "metadata: {x: &a0 [x]}\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
    "an alias within itself": yaml.safe_dump(TASK) + "metadata: &a [*a]", "brackets": "metadata: " + "[" * 100_000,
    "a text": "quiz", "a date": "metadata: 2024-99-99", "a number": "metadata: " + "9" * 5000,
    "large": "x: " + "y" * 600_000, "many keys": "".join(f"k{n}: 1\n" for n in range(30_000)), "not UTF-8": b"task: \xff\xfe\x00",
}.items():  # fmt: skip
    refused(f"YAML: {name}", "quiz", text)
refused("YAML: a folder", "", {}, {"x.yaml/y": ""}, where="x.yaml")
refused("YAML: a pipe", "", {}, {"x.yaml": os.mkfifo}, where="x.yaml")


def parquet(feature: str, place: str) -> Callable[[Path], None]:
    """A file whose metadata call a column pictures or the like, to be read from a place."""

    def write_to(path: Path) -> None:
        cell = {"bytes": None, "path": place.replace("OUTSIDE", str(outside(path)))}
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({name: [value] for name, value in RECORD.items()}).append_column("i", pa.array([cell], kind))
        about = json.dumps({"info": {"features": {"i": {"_type": feature}}}})
        pq.write_table(table.replace_schema_metadata({"huggingface": about}), path)

    return write_to


def archive(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        member = tarfile.TarInfo("x.jsonl")
        member.type, member.linkname = tarfile.SYMTYPE, str(outside(path) / "secret.jsonl")
        file.addfile(member)


for feature, place in {"Image": "OUTSIDE/secret.jsonl", "Pdf": "http://127.0.0.1:9/x.png"}.items():
    changes = {"dataset_path": "parquet", **data({"test": "x.parquet"})}
    CASES.append(Case(f"{feature} of {place}", (), changes, {"x.parquet": parquet(feature, place)}))
for name, stored in {
    "a tar of links": archive, "brackets": "[" * 100_000, "other columns": '{"q": "x"}',
    "not UTF-8": b'{"q": "\xff"}', "mixed": '{"q": 1}\n{"q": "x"}\n{"q": [1]}',
    "a long word": json.dumps(RECORD | {"q": "x" * 200_000}),
    "20,000 choices": json.dumps(RECORD | {"options": ["x"] * 20_000}), "no choice": json.dumps(RECORD | {"options": [""]}),
}.items():  # fmt: skip
    refused(f"data: {name}", "", data({"test": "x.jsonl"}), {"x.jsonl": stored}, where="tasks/")
for name, stored in {"a bomb": gzip.compress(b" " * 60_000_000), "cut short": gzip.compress(bytes(1000))[:-9]}.items():
    refused(f"data: {name}", "x.jsonl.gz", data({"test": "x.jsonl.gz"}), {"x.jsonl.gz": stored}, where="tasks/")
for kind, name, stored in (("csv", "x.csv", "a," * 20_000), ("json", "x.txt", "{}"), ("parquet", "x.parquet", b"PAR1")):
    changes = {"dataset_path": kind, **data({"test": name})}
    refused(f"data: no {kind}", name, changes, {name: stored}, where="tasks/")
for key, value in {"test_split": "nosuch", "output_type": "nosuch"}.items():
    refused(f"{key} {value}", value, {key: value})
refused("no split", "", {"test_split": None})


def write(case: Case, tmp_path: Path) -> Path:
    """Write a case's folder; beside it, what is nobody's business."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    outside(folder / "x").mkdir()
    for name, text in {
        "secret.jsonl": json.dumps(RECORD | {"q": SECRET}), "outside.yaml": f"description: {SECRET}",
        "script.py": "open('ran', 'w')",
    }.items():  # fmt: skip
        (outside(folder / "x") / name).write_text(text)
    with zipfile.ZipFile(outside(folder / "x") / "secret.zip", "w") as file:
        file.write(outside(folder / "x") / "secret.jsonl", "secret.jsonl")
    text = case.changes
    if isinstance(text, dict):
        text = yaml.safe_dump({key: value for key, value in (TASK | text).items() if value is not None})
    if isinstance(text, str):
        text = text.replace("OUTSIDE", str(outside(folder / "x")))
    for name, stored in {"data.jsonl": json.dumps(RECORD), "quiz.yaml": text, **case.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if callable(stored):
            stored(folder / name)
        else:
            (folder / name).write_bytes(stored if isinstance(stored, bytes) else stored.encode())
    return folder


ROOT = Path(__file__).parents[2]


def scored(folder: Path, harness: Harness) -> Any:
    """The result, as a manifest's task over this folder is planned and then scored."""
    source, cache = sources.parse(f"path:{folder}"), sources.Cache()
    own = OwnData(kind_of("quiz"), content(source, cache), source=source.text)
    own.inspect("quiz", cache)
    return harness.score(TaskSpec("quiz", own=own), cache)


@pytest.fixture(scope="module")
def harness(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A loaded model that has scored a harmless folder, so that all imports are done."""
    model = Harness(tiny_llama, "decoder", None, None, load_model(tiny_llama, "decoder"))
    for number, changes in enumerate(({}, WRITES)):
        found = scored(write(Case("harmless", (), changes), tmp_path_factory.mktemp(f"harmless{number}")), model)
        assert found.n == 1
    return model


@pytest.mark.parametrize("case", a_third(CASES), ids=lambda case: case.name[:80])
def test_a_hostile_folder(case: Case, tmp_path: Path, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, current = write(case, tmp_path), tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    before = sorted(outside(folder / "x").iterdir())
    with cheap(), audited() as log:
        try:
            outcome: Any = scored(folder, harness)
        except SparsebenchError as error:
            outcome = error
    shown = str(outcome)
    assert isinstance(outcome, SparsebenchError) == bool(case.words), shown
    assert [word for word in case.words if word not in shown] == [], shown
    assert SECRET not in shown and len(shown) < 20_000
    home = os.environ["SPARSEBENCH_CACHE"]
    ours = (
        str(folder), home, os.path.dirname(os.path.realpath(Path(home) / "locks")), str(ROOT),
        sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix, "/usr/",
        os.path.join(tempfile.gettempdir(), "sparsebench.partial-"), "/proc/self/", f"/proc/{os.getpid()}/", "/sys/",
    )  # fmt: skip
    assert [path for path in log if not path.startswith(ours)] == []
    assert sorted(outside(folder / "x").iterdir()) == before and not list(current.iterdir())


PLANNED = ["dataset_path pickle", "data_dir nowhere", "data_files 'http://127.0.0.1:9/x.jsonl'", "class"]
WORKED = ["doc_to_text: nested loops", "regexes_to_ignore: dear"]


@pytest.mark.parametrize(("exit_code", "names"), [pytest.param(2, PLANNED, marks=pytest.mark.long), (1, WORKED)])
def test_a_command_shows_no_traceback(exit_code: int, names: list[str], tmp_path: Path, tiny_llama: Path) -> None:
    cases = [case for case in CASES if case.name in names]
    assert len(cases) == len(names)
    model = f"models: [{{name: m, source: 'path:{tiny_llama}', family: decoder}}]"
    lines = ["version: 1", model, "benchmarks:", "  decoder:"]
    for number, case in enumerate(cases):
        (tmp_path / str(number)).mkdir()
        folder = write(case, tmp_path / str(number))
        file = folder / "quiz.yaml"
        file.write_text(file.read_text().replace("task: quiz", f"task: quiz{number}"))
        lines.append(f"  - {{task: quiz{number}, source: 'path:{folder}'}}")
    manifest = tmp_path / "m.yaml"
    manifest.write_text("\n".join(lines))
    done = call("score", tiny_llama, "--manifest", manifest, cwd=tmp_path)
    shown = done.stdout + done.stderr
    assert done.returncode == exit_code and "Traceback" not in shown, shown
    assert [case.words[1] for case in cases if case.words[1] not in shown] == [], shown
    assert not (tmp_path / "ran").exists()
