"""How long an input may be, against what the model itself takes; the special tokens around a text."""

from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.families import MODEL_TYPES, auto_class, transformers_config
from sparsebench.models.files.text import longest_input, special_tokens, token_ids
from tests.models.model_zoo import CONFIGS, small

POSITIONED = [name for name in CONFIGS if name != "whisper" and longest_input(small(name)) is not None]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 34, "vocab_size": 60,
}  # fmt: skip
OTHER_INPUTS: dict[str, dict[str, Any]] = {
    "data2vec-text": {},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 9, "entity_emb_size": 8},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 6, "shape_size": 4},
    "markuplm": {},
}
"""Encoders whose positions begin behind the padding token."""
LISTED = "bert roberta mpnet camembert xlm-roberta roberta-prelayernorm gpt2 opt gpt_neo bart".split()


@pytest.mark.parametrize("model_type", [*LISTED, *OTHER_INPUTS])
def test_a_model_with_a_table_takes_that_many_tokens_and_no_more(model_type: str) -> None:
    other = model_type in OTHER_INPUTS
    config = {"model_type": model_type, **SIZES, **OTHER_INPUTS[model_type]} if other else small(model_type)
    limit = longest_input(config)
    assert limit is not None and (limit < 34 or not other)
    family = MODEL_TYPES.get(model_type, "encoder")
    model = auto_class(family, config).from_config(transformers_config(config)).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))


def test_most_types_state_a_limit_but_relative_positions_have_none_and_an_unknown_type_is_an_error() -> None:
    for model_type in ("t5", "mt5", "umt5", "longt5", "bloom"):
        assert longest_input(small(model_type, n_positions=512)) is None
    assert longest_input({"model_type": "led"}) == 1024
    assert len(POSITIONED) > 35
    assert {longest_input(small(name)) for name in POSITIONED} == {64, 62}
    with pytest.raises(ModelError, match="no model type 'gpt9'"):
        longest_input({"model_type": "gpt9"})


@pytest.mark.parametrize("model_type", CONFIGS)
def test_a_loaded_model_s_configuration_says_the_same(model_type: str) -> None:
    config = small(model_type)
    assert longest_input(transformers_config(config).to_dict()) == longest_input(config)


class Fake:
    """A tokenizer with one letter and a frame."""

    def __init__(self, letter: list[int], before: list[int], after: list[int], change: int = 0) -> None:
        self.letter, self.before, self.after, self.change = letter, before, after, change

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, Any]:
        if not add_special_tokens:
            return {"input_ids": self.letter}
        return {"input_ids": [*self.before, *(token + self.change for token in self.letter), *self.after]}


@pytest.mark.parametrize(("before", "after"), [([], []), ([1], []), ([], [2]), ([1], [2]), ([9, 1], [2, 2])])
def test_what_stands_around_a_text(before: list[int], after: list[int]) -> None:
    tokenizer: Any = Fake([7, 8], before, after)
    assert special_tokens(tokenizer) == (before, after)
    assert token_ids(tokenizer, "a") == [7, 8]


@pytest.mark.parametrize(("letter", "change"), [([], 0), ([7], 1)])
def test_a_tokenizer_that_does_not_tell_is_an_error(letter: list[int], change: int) -> None:
    tokenizer: Any = Fake(letter, [1], [2], change)
    with pytest.raises(ModelError, match="the letter a"):
        special_tokens(tokenizer)
