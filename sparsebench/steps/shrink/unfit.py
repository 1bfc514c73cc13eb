"""Whether a model can be cut as a step asks, judged by its config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.schema import Family
from sparsebench.models.architectures import UNBIASED, architecture
from sparsebench.models.families import family_of
from sparsebench.models.types import PER_LAYER
from sparsebench.steps.contract import Step
from sparsebench.steps.recover import step as recover
from sparsebench.steps.shrink.choosing import by_labels, kinds_of
from sparsebench.steps.shrink.gated import GATES
from sparsebench.steps.shrink.labelled import lacking


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a step cannot cut the model of a config.json, and the way out; empty where it shows no reason."""
    try:
        check(step, config, family_of(config))
    except UnsupportedError as error:
        return error.message, error.hint or ""
    return recover.refuses(step, config)


def check(step: Step, config: Mapping[str, Any], family: Family | None) -> None:
    """Raise UnsupportedError for every reason that ``refuses`` gives, except those that only concern training."""
    own, how, type_ = step.settings, architecture(config), config.get("model_type")
    of: Any = "blocks" if "blocks" in own else own.get("of")
    for kind in kinds_of(of) if of else ():
        if why := how.cannot(kind):
            raise UnsupportedError(f"{type_}: {why}", how.instead(kind))
    if own.get("compensation") == "bias":
        cut = [{"heads": "o", "neurons": "down"}[kind] for kind in kinds_of(of)]
        if without := [name for name in cut if name in UNBIASED.get(str(type_), ())]:
            raise UnsupportedError(
                f"compensation: bias: {type_} has no bias beside {' and '.join(without)}, "
                "and transformers would ignore one",
                "`compensation: least_squares` or `none`",
            )
    if step.name == GATES and how.mixture:
        raise UnsupportedError(f"{type_}: gates are not learned for mixtures of experts", "another criterion")
    if own.get("uneven") and (how.mixture or family == "encoder-decoder"):
        experts = "config.json has no key for an expert or a block of a mixture with fewer elements"
        why = experts if how.mixture else f"`{PER_LAYER}` numbers the blocks of one stack, and there are two"
        raise UnsupportedError(f"{type_}: uneven: {why}", "leave `uneven` out")
    if own.get("operations") is not None and how.mixture:
        why = "operations: shapes do not tell which experts a token takes, and how often"
        raise UnsupportedError(f"{type_}: {why}", "`parameters` or `keep`")
    if own.get("labels") == "text" and family == "encoder":
        raise UnsupportedError("labels: text: an encoder predicts no next token of a text", "`labels: own`")
    if by_labels(step) and (why := lacking(config)):
        raise UnsupportedError(why, "`labels: own`, or a checkpoint that was fine-tuned to classify")
