"""Token ids stay inside the vocabulary and clear of special tokens; a workload too long for a model is refused."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.energy import EnergyMeter
from sparsebench.errors import UnsupportedError
from sparsebench.runtime import Setting, Workload, latency
from sparsebench.runtime.channel import Channel
from sparsebench.runtime.rank_jobs import RankWorker, StartedRank
from sparsebench.runtime.refusals import position_refusal
from sparsebench.runtime.results import RankJob
from sparsebench.runtime.workload import draw_prompt

UNUSED = Channel.__new__(Channel)
CONFIG = {"model_type": "llama", "vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2, 49]}


@given(st.integers(1, 4), st.integers(1, 64))
def test_ids_are_the_same_each_time_in_the_vocabulary_and_not_special(batch: int, prompt: int) -> None:
    ids = draw_prompt(CONFIG, Workload(batch, prompt)).ids
    assert ids.shape == (batch, prompt)
    assert set(ids.flatten().tolist()) <= set(range(50)) - {0, 1, 2, 49}
    assert ids.equal(draw_prompt(dict(CONFIG), Workload(batch, prompt)).ids)


@pytest.mark.parametrize(
    ("config", "family", "load", "fits"),
    [
        ({"model_type": "llama", "max_position_embeddings": 128}, "decoder", Workload(1, 112, 16), True),
        ({"model_type": "llama", "max_position_embeddings": 128}, "decoder", Workload(1, 113, 16), False),
        ({"model_type": "gpt2", "n_positions": 128}, "decoder", Workload(1, 129, 1), False),
        ({"model_type": "bert", "max_position_embeddings": 128}, "encoder", Workload(1, 128, 16), True),
        ({"model_type": "roberta", "max_position_embeddings": 130, "pad_token_id": 1}, "encoder", Workload(1, 128), True),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 130, "pad_token_id": 1}, "encoder", Workload(1, 129), False),
        ({"model_type": "t5", "n_positions": 512}, "encoder-decoder", Workload(1, 4096, 1024), True),
        ({"model_type": "longt5", "n_positions": 512}, "encoder-decoder", Workload(1, 4096, 1024), True),
        ({"model_type": "mpt", "max_seq_len": 128}, "decoder", Workload(1, 113, 16), False),
        ({"model_type": "bart", "max_position_embeddings": 128}, "encoder-decoder", Workload(1, 128, 127), True),
        ({"model_type": "bart", "max_position_embeddings": 128}, "encoder-decoder", Workload(1, 16, 128), False),
    ],
)  # fmt: skip
def test_positions(config: dict[str, Any], family: str, load: Workload, fits: bool) -> None:
    refusal = position_refusal(config, family, load)  # type: ignore[arg-type]
    assert (refusal is None) == fits and (fits or "does not fit" in str(refusal))


def test_an_engine_for_cpus_refuses_the_gpu_that_its_rank_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    worker = RankWorker(RankJob("memory", "decoder"), Setting("skip", 1, Workload()), 0, UNUSED)
    with pytest.raises(UnsupportedError, match="the skip engine runs on a CPU only"):
        worker.take_device()


def started(job: RankJob, setting: Setting, channel: Channel = UNUSED) -> StartedRank:
    worker = RankWorker(job, setting, 0, channel)
    return StartedRank(worker, "cpu", (), latency.RankSync(1, False), EnergyMeter(""))


def test_each_model_of_a_pair_is_prompted_in_its_own_vocabulary(tmp_path: Path) -> None:
    """A trimmed model has no row for the ids of the dense one; models of one vocabulary get the same prompt."""
    rank = started(RankJob("memory", "decoder"), Setting("hf", 1, Workload(prompt=64)))
    prompts = []
    for name, size in (("dense", 5000), ("pruned", 5000), ("trimmed", 20)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": size}))
        prompts.append(rank.prompt(tmp_path / name).ids)
    assert prompts[0].equal(prompts[1])
    assert prompts[0].max() >= 20 > prompts[2].max()


def test_a_rank_speaks_after_each_load_and_after_parity(tiny_bert: Path) -> None:
    job = RankJob("latency", "encoder", variants=(str(tiny_bert),), dense=str(tiny_bert))
    setting = Setting("hf", 1, Workload(prompt=8), samples=1, phase_seconds=0.01)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"\n")  # the result is taken
        started(job, setting, Channel(ours.fileno())).latency(0)
        messages = [json.loads(line) for line in theirs.recv(2**20).splitlines()]
    assert [message.get("what", message["kind"]) for message in messages] == [
        "load",
        "parity",
        "load",
        "forward",
        "result",
    ]
