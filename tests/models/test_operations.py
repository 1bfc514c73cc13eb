"""Operations a token: what the shapes say, counted on a pass without weights."""

import pytest

from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.operations import operations_per_token
from tests.models.model_zoo import CONFIGS, EXPERT_TYPES, small

USUAL = ("bert", "roberta", "gpt2", "t5", "bart", "mixtral", "whisper")


def test_what_a_decoder_takes_by_hand_and_one_that_is_not_known_is_not_counted() -> None:
    # 2 blocks, 32 wide, 4 heads of 8 (2 with keys and values), 48 neurons, 96 tokens, 64 positions
    config = small("llama")
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 96
    attention = 2 * 2 * 64 * 32  # in each block, queries with keys and weights with values
    # Rotary embeddings multiply frequencies with positions once.
    assert operations_per_token(config, "decoder") == pytest.approx(2 * (matrices + attention), rel=1e-3)
    fewer = operations_per_token({**config, "intermediate_size": 24, "num_hidden_layers": 1}, "decoder")
    assert operations_per_token({"model_type": "novel"}, "decoder") is None
    assert fewer == pytest.approx(2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 24 + 32 * 96 + attention / 2), rel=1e-3)


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in USUAL else pytest.param(kind, marks=pytest.mark.long)
        for kind in sorted(set(CONFIGS) - {"deberta", "deberta-v2", "megatron-bert"})
    ],
)
def test_every_architecture_is_counted_but_experts_and_audio(kind: str) -> None:
    found = operations_per_token(small(kind), MODEL_TYPES[kind])
    if kind in (*EXPERT_TYPES, "whisper"):
        assert found is None
    else:  # two blocks at least: the four matrices of attention and two of 48 neurons
        assert found is not None and found > 2 * 2 * (4 * 32 * 32 + 2 * 32 * 48)
