"""Long lists of cases: a part of them in the usual run, all in ``make test-long``."""

from collections.abc import Iterable
from typing import Any

import pytest


def a_third(cases: Iterable[Any], slow: str = "no case") -> list[Any]:
    """Every third case for the usual run; the others marked ``long``, and names that begin with ``slow``.

    A case is one parameter or a tuple of several.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            marks=pytest.mark.long if number % 3 or str(case).startswith(slow) else (),
        )
        for number, case in enumerate(cases)
    ]
