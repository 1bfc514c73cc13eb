"""Operations a token: what the shapes say, counted on a pass without weights."""

import pytest

from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.modules.operations import operations_per_token
from tests.models.model_zoo import CONFIGS, EXPERT_TYPES, small


def test_what_a_decoder_takes_by_hand() -> None:
    config = small(
        "llama"
    )  # 2 blocks, 32 wide, 4 heads of 8 (2 with keys and values), 48 neurons, 96 tokens, 64 positions
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 96
    attention = 2 * 2 * 64 * 32  # in each block, queries with keys and weights with values
    # Rotary embeddings multiply frequencies with positions once.
    assert operations_per_token(config, "decoder") == pytest.approx(2 * (matrices + attention), rel=1e-3)
    fewer = operations_per_token({**config, "intermediate_size": 24, "num_hidden_layers": 1}, "decoder")
    assert fewer == pytest.approx(2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 24 + 32 * 96 + attention / 2), rel=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5", "bart", "mixtral", "whisper"])
def test_every_family_is_counted_but_experts_and_audio(kind: str) -> None:
    found = operations_per_token(small(kind), MODEL_TYPES[kind])
    assert (found is None) == (kind in (*EXPERT_TYPES, "whisper"))


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", sorted(set(CONFIGS) - {*EXPERT_TYPES, "whisper", "deberta", "deberta-v2", "megatron-bert"})
)
def test_every_architecture_is_counted(kind: str) -> None:
    found = operations_per_token(small(kind), MODEL_TYPES[kind])
    # Two blocks at least: the four matrices of attention and two of 48 neurons.
    assert found is not None and found > 2 * 2 * (4 * 32 * 32 + 2 * 32 * 48)


def test_a_type_that_is_not_known_is_not_counted() -> None:
    assert operations_per_token({"model_type": "novel"}, "decoder") is None
