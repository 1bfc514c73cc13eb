"""Long lists of cases: a part of them in the usual run, all in ``make test-long``."""

from collections.abc import Iterable
from typing import Any

import pytest


def a_third(cases: Iterable[Any]) -> list[Any]:
    """Every third case for the usual run; the others marked ``long``. A case is one parameter or a tuple of several."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else [case]), marks=() if number % 3 == 0 else pytest.mark.long)
        for number, case in enumerate(cases)
    ]
