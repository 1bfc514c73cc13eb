"""The report: our prose with the ledger's numbers.

A section is one template in ``templates/``; a method's explanation is one template in ``templates/methods/``, named after the
method. A number comes from a file in ``queries/``, which a reader can run as it stands.
"""

from __future__ import annotations

from sparsebench.report.answer import answer_table
from sparsebench.report.build import build, build_brief

__all__ = ["answer_table", "build", "build_brief"]
