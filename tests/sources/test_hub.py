"""``hf:`` with the hub's own client in a process of its own: its settings are read once, when it is imported.

There is no hub here: the paths that succeed run against an imitation of its few endpoints on loopback.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparsebench.sources import parse
from sparsebench.sources.hub import fetch, missing_weights, wanted_files
from tests.sources.servers import COMMIT, Served, hub, serving

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"s" * 100,
    "pytorch_model.bin": b"p" * 50,
    "flax_model.msgpack": b"f",
    "onnx/model.onnx": b"o",
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b"{}",
    "README.md": b"hello",
}
SCRIPT = """
import json, sys
from pathlib import Path
from sparsebench import sources
from sparsebench.errors import SourceError
source, cache, answers = sources.parse(sys.argv[1]), sources.Cache(offline=sys.argv[2] == "offline"), {}
for name in sys.argv[3:]:
    try:
        answer = getattr(sources, name)(source, cache)
    except SourceError as error:
        answer = {"message": error.message, "hint": error.hint}
    if isinstance(answer, Path) and answer.is_file():
        answer = {answer.name: answer.read_text()}
    if isinstance(answer, Path):
        answer = {p.relative_to(answer).as_posix(): p.read_text() for p in answer.rglob("*") if p.is_file()}
    answers[name] = answer
print(json.dumps(answers))
"""


def ask(url: str, source: str, *questions: str, offline: bool = False, **settings: str) -> dict[str, Any]:
    """The answers of the room's functions, with HF_ENDPOINT at ``url`` and the test's own HF_HOME."""
    mode = "offline" if offline else "online"
    env = {**os.environ, "HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1", **settings}
    env = {name: value for name, value in env.items() if value}
    command = [sys.executable, "-c", SCRIPT, source, mode, *questions]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def test_safetensors_alone_are_fetched_at_the_resolved_commit_and_kept_for_offline() -> None:
    with serving(Served()) as served:
        hub(served, "org/tiny", FILES)
        first = ask(served.url, "hf:org/tiny", "fingerprint", "read_config", "size", "fetch")
        assert first["fingerprint"] == COMMIT
        assert first["read_config"] == {"model_type": "llama"}
        assert first["size"] == 104, "config.json is there already"
        wanted = {"config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"}
        assert first["fetch"] == {name: FILES[name].decode() for name in wanted}
        assert not served.count("pytorch_model.bin") and not served.count("model.onnx")
    questions = ("fingerprint", "read_config", "size", "fetch")
    warm = {**first, "size": 0}
    assert ask(served.url, "hf:org/tiny", *questions) == warm, "the hub is gone, the cache is warm"
    assert ask(served.url, "hf:org/tiny", *questions, offline=True) == warm
    assert ask(served.url, "hf:org/tiny", *questions, HF_HUB_OFFLINE="1") == warm
    assert ask(served.url, f"hf:org/tiny@{COMMIT}", *questions, offline=True) == warm


def test_a_note_that_cannot_be_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "refs").touch()  # as good as a read-only HF_HOME, also for root
    for name in ("_folder", "_cache_folder"):
        monkeypatch.setattr(f"sparsebench.sources.hub.{name}", lambda *_: tmp_path)
    monkeypatch.setattr("sparsebench.sources.hub.commit", lambda *_: COMMIT)
    assert fetch(parse("hf:org/tiny")) == tmp_path


def test_without_safetensors_it_is_pytorch_weights_and_without_either_an_error() -> None:
    with serving(Served()) as served:
        hub(served, "org/old", {name: data for name, data in FILES.items() if name != "model.safetensors"}, "v1")
        fetched = ask(served.url, "hf:org/old@v1", "fetch")["fetch"]
        assert set(fetched) == {"config.json", "pytorch_model.bin", "tokenizer.json", "1_Pooling/config.json"}
        hub(served, "org/none", {"config.json": b"{}", "flax_model.msgpack": b"f"})
        assert "neither safetensors nor PyTorch" in ask(served.url, "hf:org/none", "fetch")["fetch"]["message"]


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (404, "RepoNotFound", "no such model", "HF_TOKEN"),
        (403, "GatedRepo", "is gated", "licence"),
        (404, "RevisionNotFound", "no revision main", "branch"),
        (503, "", "cannot be fetched", "--rehearse"),
    ],
)
def test_what_the_hub_refuses(status: int, code: str, message: str, hint: str) -> None:
    path = "/api/models/org/secret/revision/main"
    with serving(Served(statuses={path: status}, headers={path: {"X-Error-Code": code}})) as served:
        answers = ask(served.url, "hf:org/secret", "fingerprint", "fetch")
        for answer in answers.values():
            assert message in answer["message"] and served.url in answer["message"]
            assert "hf:org/secret@main" in answer["message"] and hint in answer["hint"]


@pytest.mark.parametrize("status", [401, 503])
def test_no_message_tells_the_password_of_a_mirror(status: int) -> None:
    path, secret = "/api/models/org/tiny/revision/main", "pass" * 60
    with serving(Served(statuses={path: status})) as served:
        answers = ask(served.url.replace("://", f"://me:{secret}@"), "hf:org/tiny", "fingerprint", "fetch")
        for answer in answers.values():
            assert served.url.removeprefix("http://") in answer["message"]
            assert "pass" not in json.dumps(answer) and "me:" not in answer["message"]


def test_an_unreachable_hub_names_the_model_and_every_way_out() -> None:
    for settings in ({}, {"HF_HUB_OFFLINE": "1"}):
        answers = ask("http://127.0.0.1:9", "hf:org/tiny", "fingerprint", "size", "fetch", **settings)
        assert answers["size"] is None
        for name in ("fingerprint", "fetch"):
            assert "hf:org/tiny@main cannot be fetched from http://127.0.0.1:9" in answers[name]["message"]
            for way in ("HF_ENDPOINT", "hf download org/tiny", "--rehearse"):
                assert way in answers[name]["hint"]
    offline = ask("http://127.0.0.1:9", "hf:org/tiny", "read_config", "size", "fetch", offline=True)
    assert offline["read_config"] is None and offline["size"] is None
    assert "offline" in offline["fetch"]["message"]


def test_a_cache_that_holds_only_a_part_is_not_taken_for_the_model() -> None:
    with serving(Served()) as served:
        hub(served, "org/tiny", FILES)
        assert ask(served.url, "hf:org/tiny", "read_config")["read_config"]
    answer = ask(served.url, f"hf:org/tiny@{COMMIT}", "fetch", "size", offline=True)
    assert answer["size"] is None
    assert "only part of it (model.safetensors is missing)" in answer["fetch"]["message"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_what_the_hub_says_of_a_file_is_why_it_is_not_there(file: str) -> None:
    """The real hub tells everybody about a gated model, and refuses its files."""
    path = f"/org/tiny/resolve/{COMMIT}/{file}"
    with serving(Served(statuses={path: 403})) as served:
        hub(served, "org/tiny", FILES)
        served.statuses[path] = 403
        for answer in ask(served.url, "hf:org/tiny", *(["read_config"] * (file == "config.json")), "fetch").values():
            assert "403" in answer["message"] and "only part of it" not in answer["message"]


def test_a_broken_download_is_an_error_and_the_next_one_is_whole() -> None:
    with serving(Served()) as served:
        hub(served, "org/tiny", FILES)
        served.statuses[f"/org/tiny/resolve/{COMMIT}/model.safetensors"] = 400
        assert "message" in ask(served.url, "hf:org/tiny", "fetch")["fetch"]
        served.statuses.clear()
        assert ask(served.url, "hf:org/tiny", "fetch")["fetch"]["model.safetensors"] == "s" * 100


DATA = {"en/validation.jsonl": b'{"text": "a"}', "en/train.jsonl": b"t" * 900, "README.md": b"hello"}
FILE = "hf:datasets/org/texts!en/validation.jsonl"


def test_one_file_of_a_data_set_is_fetched_and_kept_for_offline() -> None:
    questions = ("fingerprint", "read_config", "size", "fetch")
    with serving(Served()) as served:
        hub(served, "org/texts", DATA, kind="datasets")
        first = ask(served.url, FILE, *questions)
        assert first == {
            "fingerprint": COMMIT,
            "read_config": None,
            "size": 13,
            "fetch": {"validation.jsonl": '{"text": "a"}'},
        }
        assert not served.count("train.jsonl") and not served.count("README.md")
        answer = ask(served.url, "hf:datasets/org/texts!en/valdation.jsonl", "fetch")["fetch"]
        assert "has no file en/valdation.jsonl" in answer["message"]
        assert "did you mean `en/validation.jsonl`?" in answer["hint"]
    warm = {**first, "size": 0}
    assert ask(served.url, FILE, *questions) == warm, "the hub is gone, the cache is warm"
    assert ask(served.url, FILE, *questions, offline=True) == warm
    assert ask(served.url, FILE.replace("!", f"@{COMMIT}!"), *questions, HF_HUB_OFFLINE="1") == warm
    assert "message" in ask(served.url, "hf:org/texts", "fetch", offline=True)["fetch"], (
        "a model of that name is another"
    )


def test_a_data_set_that_cannot_be_had_says_how_it_could() -> None:
    answers = ask("http://127.0.0.1:9", FILE, "size", "fetch")
    assert answers["size"] is None
    assert "hf:datasets/org/texts@main!en/validation.jsonl cannot be fetched" in answers["fetch"]["message"]
    for way in ("HF_ENDPOINT", "hf download org/texts en/validation.jsonl --repo-type dataset", "path:"):
        assert way in answers["fetch"]["hint"]
    assert "--rehearse" not in answers["fetch"]["hint"]
    path = "/api/datasets/org/texts/revision/main"
    with serving(Served(statuses={path: 403}, headers={path: {"X-Error-Code": "GatedRepo"}})) as served:
        answer = ask(served.url, FILE, "fetch")["fetch"]
        assert "the data set is gated" in answer["message"] and f"{served.url}/datasets/org/texts" in answer["hint"]


def test_one_set_of_weights_is_chosen() -> None:
    sharded = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    names = [
        *sharded, "model.safetensors.index.json", "pytorch_model-00001-of-00001.bin", "consolidated.safetensors",
        "model.fp16-00001-of-00001.safetensors", "onnx/config.json", "spiece.model", "2_Dense/model.safetensors",
        "tf_model.h5", "merges.txt", "chat_template.jinja", "openvino/x.json", "rust_model.ot", "training_args.bin",
    ]  # fmt: skip
    assert set(wanted_files(names)) == {
        *sharded, "model.safetensors.index.json", "spiece.model", "2_Dense/model.safetensors", "merges.txt",
        "chat_template.jinja",
    }  # fmt: skip


def test_a_sharded_model_is_whole_when_every_shard_is_there(tmp_path: Path) -> None:
    assert missing_weights(tmp_path) == "config.json"
    (tmp_path / "config.json").touch()
    assert missing_weights(tmp_path) == "model.safetensors"
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "model-1.safetensors").touch()
    assert missing_weights(tmp_path) == "model-2.safetensors"
    (tmp_path / "model-2.safetensors").touch()
    assert missing_weights(tmp_path) is None
