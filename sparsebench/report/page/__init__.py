"""The report as one HTML page: the same Markdown, with everything that it needs inside the file."""

from __future__ import annotations

from sparsebench.report.page.html import page

__all__ = ["page"]
