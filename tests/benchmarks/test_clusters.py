"""Documents that share a context are told by it, whatever the task calls the field."""

from typing import Any

import pytest

from sparsebench.benchmarks.hashes import cluster


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"passage": "P", "question": "a"}, {"passage": "P ", "question": "b"}),
        ({"premise": "It rains.", "hypothesis": "a"}, {"premise": "It rains.", "hypothesis": "b"}),
        ({"source_id": "video~1", "ctx": "a"}, {"source_id": "video~1", "ctx": "b"}),
        (
            {"sentence": "Sarah was better than Maria so _ got easy cases.", "option1": "Sarah", "option2": "Maria"},
            {"sentence": "Sarah was better than Maria so _ got hard cases.", "option1": "Maria", "option2": "Sarah"},
        ),
    ],
)
def test_the_same_context_is_the_same_cluster(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert cluster(first) == cluster(second) is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"passage": "P"}, {"passage": "Q"}),
        (
            {"sentence": "Sarah was better than Maria so _ won.", "option1": "Sarah", "option2": "Maria"},
            {"sentence": "Sarah asked Maria for help so _ came.", "option1": "Sarah", "option2": "Maria"},
        ),
    ],
)
def test_another_context_is_another_cluster(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert cluster(first) != cluster(second)


@pytest.mark.parametrize(
    "document", [{"question": "a"}, {"passage": ""}, {"support": "  ", "question": "a"}, {"story": 3}]
)
def test_without_a_context_there_is_no_cluster(document: dict[str, Any]) -> None:
    assert cluster(document) is None
