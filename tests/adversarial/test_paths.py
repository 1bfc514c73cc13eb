"""A stranger's model or ledger folder that reaches for files beside it: refused before one is read, written or copied."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sparsebench.benchmarks.pooling import read_pooling
from sparsebench.errors import ModelError, SourceError, UserError
from sparsebench.figures import style
from sparsebench.ledger.query import export
from sparsebench.ledger.store import Ledger
from sparsebench.models.files.building import new_partial
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.prepare import prepare
from sparsebench.paths import INDEX, PICKLE_INDEX, check_contained, create, name_beside
from sparsebench.plan import preflight
from sparsebench.plan.jobs import jobs
from sparsebench.report import build
from sparsebench.run.workspace import exclusive
from sparsebench.sources import hub, parse
from sparsebench.storage import pack, unpack
from tests.adversarial.watch import opened
from tests.command import call
from tests.ledger import samples

CANARY = "a secret of the owner's"
MANIFEST = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models: [{{name: tiny, source: "path:{home}/model", family: decoder}}]
"""


@pytest.fixture
def home(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder with ``model``, the same ``packed``, a manifest and, beside them, ``outside``: whole weights and a secret."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    pack(tmp_path / "model", tmp_path / "packed")
    (tmp_path / "m.yaml").write_text(MANIFEST.format(home=tmp_path))
    (tmp_path / "outside").mkdir()
    shutil.copy(tiny_llama / "model.safetensors", tmp_path / "outside" / "theirs")
    (tmp_path / "outside" / "secret").write_text(CANARY)
    return tmp_path


def climbing(folder: Path) -> str:
    """The index names weights outside of the folder."""
    suffix = ".packed" if folder.name == "packed" else ""
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / (INDEX + suffix)).write_text(json.dumps({"weight_map": {"x": "../outside/theirs"}}))
    return INDEX + suffix


def through_a_folder(folder: Path) -> str:
    """A link to a folder outside, which the index goes through where there is one."""
    (folder / "away").symlink_to("../outside")
    return "away"


def to_a_file(folder: Path) -> str:
    """A file that is a link out."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(folder.parent / "outside" / "secret")
    return "tokenizer.json"


def told(*words: object) -> tuple[int, str]:
    """The exit code of a command line and what it says on stderr, without the spaces that break long lines."""
    done = call(*words)
    return done.returncode, "".join(done.stderr.split())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content; links are not followed."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (climbing, ["apply", "model", "prune: magnitude, sparsity: 0.5", "--out", "out"]),
        (to_a_file, ["pack", "model", "--out", "out"]),
        (through_a_folder, ["unpack", "packed", "--out", "out"]),
        (climbing, ["measure", "packed", "--engine", "sparse"]),
        (to_a_file, ["run", "m.yaml"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_verb_refuses_a_model_that_leads_out_of_its_folder(
    attack: Callable[[Path], str], words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    culprit = attack(home / ("packed" if "packed" in words else "model"))
    monkeypatch.chdir(home)
    before = tree(home)
    with opened(home / "outside") as seen:
        code, said = told(*words)
    assert (code, seen) == (2, set()), said
    assert culprit in said and "Traceback" not in said
    assert tree(home) == before
    assert not (home / "out").exists() and not list(home.rglob("*.partial-*"))
    cache = Path(os.environ["SPARSEBENCH_CACHE"])
    assert not any(b"secret" in content for content in tree(cache).values()) and not list(cache.rglob("*.safetensors"))


def pickled(folder: Path) -> str:
    """The index of pickles names one outside."""
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder.parent / "outside" / "theirs.bin")
    (folder / PICKLE_INDEX).write_text(json.dumps({"weight_map": {"x": "../outside/theirs.bin"}}))
    return PICKLE_INDEX


@pytest.mark.parametrize("attack", [climbing, through_a_folder, to_a_file, pickled])
def test_a_folder_of_the_hub_or_a_wheel_is_refused(attack: Callable[[Path], str], home: Path) -> None:
    culprit = attack(home / "model")
    for dtype in ("auto", "float32"):
        with pytest.raises(ModelError, match=culprit):
            prepare(home / "model", home / "out", "decoder", dtype)
    assert not (home / "out").exists()
    if attack == pickled:
        with pytest.raises(ModelError, match=PICKLE_INDEX):
            hub.missing_weights(home / "model")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b", ".hidden", 3, None, ["x"]]
)
def test_only_plain_names_are_files_beside_an_index(name: object, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(ModelError, match=INDEX):
        check_contained(tmp_path)
    with pytest.raises(ModelError, match="named.json"):
        name_beside(name, Path("named.json"))
    assert name_beside("model-00001-of-00002.safetensors", Path()) == "model-00001-of-00002.safetensors"


def test_names_of_tokenizers_and_of_pooling_stay_in_the_folder(home: Path) -> None:
    (home / "outside" / "config.json").write_text('{"pooling_mode": "max"}')
    (home / "model" / "modules.json").write_text('[{"type": "x.Pooling", "path": "../outside"}]')
    with pytest.raises(ModelError, match=r"modules\.json"):
        read_pooling(home / "model")
    (home / "model" / "tokenizer_config.json").write_text('{"fast_tokenizer_files": ["../outside/tokenizer.1.0.json"]}')
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        Checkpoint(home / "model")


def test_the_hub_s_own_links_are_copied_as_their_content(tiny_llama: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    (snapshot / "1_Pooling").mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_llama.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (blobs / "last").write_text("{}")
    (snapshot / "1_Pooling" / "config.json").symlink_to("../../../blobs/last")
    pack(snapshot, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "out")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert copied == {path.name: path.read_bytes() for path in tiny_llama.iterdir()}
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))
    (tmp_path / "other").write_text(CANARY)
    (snapshot / "vocab.txt").symlink_to("../../../other")
    with pytest.raises(ModelError, match=r"vocab\.txt"):
        check_contained(snapshot)


def test_links_inside_are_content_but_circles_and_devices_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "real").write_text("x")
    (folder / "same").symlink_to("real")
    (folder / ".venv").mkdir()
    (folder / ".venv" / "python").symlink_to("/usr/bin/env")
    (tmp_path / "named-so").symlink_to(folder)
    check_contained(folder)
    check_contained(tmp_path / "named-so")
    for target in (".", "bad", "nowhere", ""):
        (folder / "bad").symlink_to(target) if target else os.mkfifo(folder / "bad")
        with pytest.raises(ModelError, match="bad"):
            check_contained(folder)
        (folder / "bad").unlink()
    (folder / "inner").mkdir()
    (folder / "inner" / ".bad").symlink_to("/usr")
    with pytest.raises(ModelError, match=r"\.bad"):
        check_contained(folder)


def test_a_revision_is_no_path_out_of_the_hub_s_cache() -> None:
    for text in ("hf:a/b@../../../x", "hf:a/b@/etc/passwd", "hf:datasets/a/b@..!x.jsonl"):
        with pytest.raises(SourceError, match="revision"):
            parse(text)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file of the owner's that must stay as it is."""
    path = tmp_path / "canary"
    path.write_text(CANARY)
    yield path
    assert path.read_text() == CANARY


def planted(name: Path, target: Path) -> Path:
    """A link to the canary under a name that the program would write to."""
    name.parent.mkdir(parents=True, exist_ok=True)
    name.symlink_to(target)
    return name


def test_a_run_writes_through_no_link_in_the_ledger_s_folder(home: Path, canary: Path) -> None:
    ready = preflight.prepare(preflight.PlanRequest(home / "m.yaml"))
    first = jobs(ready.plan, list(ready.plan.cells), lambda variant: False)[0]
    before = tree(home / "outside")
    for name in ("records", "logs", ".run.lock", "test.duckdb", "test.duckdb.wal", f"logs/{first.kind}-{first.id}.log"):
        link = planted(home / "ledger" / name, home / "outside" if name in ("records", "logs") else canary)
        code, said = told("run", home / "m.yaml")
        assert code == 2 and link.name in said
        assert tree(home / "outside") == before
        shutil.rmtree(home / "ledger")


def test_nothing_else_is_written_through_a_link(tmp_path: Path, canary: Path) -> None:
    from matplotlib.figure import Figure

    path, found = tmp_path / "small.duckdb", samples.sample(samples.small())
    Ledger(path).ingest(found[:-1])
    for write, name in (
        (lambda: exclusive(tmp_path / "l.duckdb").__enter__(), ".run.lock"),
        (lambda: create(tmp_path / "loop", "ab"), "loop"),
        (lambda: build(path, tmp_path / "report.md", tmp_path / "figures"), "report.md"),
        (lambda: style.save(Figure(), tmp_path / "figures" / "x.svg"), "figures/x.svg"),
        (lambda: export(path, "csv", tmp_path / "tables"), "tables/base_plans.csv"),
        # DuckDB would write to what it points to, while the file is open.
        (lambda: Ledger(path).ingest(found), "small.duckdb.wal"),
    ):
        link = planted(tmp_path / name, canary)
        with pytest.raises(UserError, match=link.name):
            write()


def test_a_folder_that_is_made_beside_another_is_no_link(tmp_path: Path, canary: Path) -> None:
    ours = tmp_path / "folder"
    link = planted(new_partial(ours).with_name("x"), canary).rename(new_partial(ours).with_name("y"))
    partial = new_partial(ours)
    partial.rmdir()
    link.rename(partial)
    assert new_partial(ours).is_dir() and not new_partial(ours).is_symlink()
