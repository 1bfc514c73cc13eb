"""Documents that share a context are told by it, whatever the task calls the field."""

from typing import Any

import pytest

from sparsebench.benchmarks.hashes import cluster

BETTER, ASKED = "Sarah was better than Maria so _ {}.", "Sarah asked Maria for help so _ came."
OPTIONS = {"option1": "Sarah", "option2": "Maria"}
PAIRS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"passage": "P", "question": "a"}, {"passage": "P ", "question": "b"}, True),
    ({"premise": "It rains.", "hypothesis": "a"}, {"premise": "It rains.", "hypothesis": "b"}, True),
    ({"source_id": "video~1", "ctx": "a"}, {"source_id": "video~1", "ctx": "b"}, True),
    ({"sentence": BETTER.format("won"), **OPTIONS},
     {"sentence": BETTER.format("got hard cases"), "option1": "Maria", "option2": "Sarah"}, True),
    ({"passage": "P"}, {"passage": "Q"}, False),
    ({"sentence": BETTER.format("won"), **OPTIONS}, {"sentence": ASKED, **OPTIONS}, False),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "same"), PAIRS)
def test_documents_of_one_context_are_one_cluster(first: dict[str, Any], second: dict[str, Any], same: bool) -> None:
    assert (cluster(first) == cluster(second)) == same
    assert cluster(first) is not None


@pytest.mark.parametrize(
    "document", [{"question": "a"}, {"passage": ""}, {"support": "  ", "question": "a"}, {"story": 3}]
)
def test_without_a_context_there_is_no_cluster(document: dict[str, Any]) -> None:
    assert cluster(document) is None
