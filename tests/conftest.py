"""Shared fixtures: tiny models of each family with true layouts and seeded weights, and a home of one's own per test."""

import gc
import os
import shutil
import signal
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.gpus import Driver

# `make test` draws the same inputs every time: a change is judged by what it changed. `make test-long` draws others.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("other", max_examples=1000, deadline=None)
settings.load_profile("same")

# What starts in the background of a shell ignores Ctrl-C, and so would all that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Where triton is installed, its kernels are computed on the CPU; torch imports it, so that a test would say it too late.
os.environ.setdefault("TRITON_INTERPRET", "1")

WORDS = ("the a of to and in is it was that cat dog sat ran on mat house tree red blue big small one two").split()


@pytest.fixture(scope="session")
def common_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is compiled, timed and listed once for all tests, whichever process runs them; files are named by their content."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "common"
    for name in ("native", "lm_eval_tasks", "locks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Names of folders, counted here: pytest would look through all that are there for each."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _isolated(_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch, common_cache: Path) -> None:
    """No test sees the user's caches or ledger."""
    home = next(_homes)
    (home / "cache" / "locks").mkdir(parents=True)
    # The locks of what is compiled and timed go along, so that two processes of tests wait for each other.
    for name in ("native", "lm_eval_tasks", "locks/native.lock"):
        (home / "cache" / name).symlink_to(common_cache / name)
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(home / "cache"))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.delenv("SPARSEBENCH_LEDGER", raising=False)


@pytest.fixture(scope="module", autouse=True)
def _earlier_objects_stay() -> None:
    """Collections that the program asks for need not look through all that was imported before: that took a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _blank_ledgers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test's new ledger is a copy of a blank one: to make it hundreds of times took minutes."""
    from sparsebench.ledger import connect, schema
    from sparsebench.ledger.store import Ledger

    blank, ingest = tmp_path_factory.mktemp("blank") / "ledger.duckdb", Ledger.ingest

    def on_copy(self: Ledger, found: Iterable[dict[str, Any]], own: bool = False) -> int:
        found = list(found)
        if not blank.exists():
            with connect.writer(blank, 5) as connection:
                schema.upgrade(connection, blank)
        if found and not os.path.lexists(self.path) and self.path.parent.is_dir():
            shutil.copyfile(blank, self.path)
        return ingest(self, found, own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "ingest", on_copy)
        yield


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A driver's tool on PATH that lists what ``lists`` is told."""
    yield Driver(tmp_path / "driver", monkeypatch)
    Driver.forget()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block Llama with grouped-query attention and tied embeddings, bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return _saved(LlamaForCausalLM, config, tmp_path_factory.mktemp("models") / "tiny-llama", "bfloat16")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block BERT encoder, float32."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, pad_token_id=0,
    )  # fmt: skip
    return _saved(BertModel, config, tmp_path_factory.mktemp("models") / "tiny-bert", "float32")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated T5 with two blocks on either side, float32."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _saved(T5ForConditionalGeneration, config, tmp_path_factory.mktemp("models") / "tiny-t5", "float32")


def _saved(cls: type, config: object, folder: Path, dtype: str) -> Path:
    import torch

    torch.manual_seed(0)
    model = cls(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(33, 97)]
    vocabulary = {word: place for place, word in enumerate([*special, *WORDS, *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
