"""How the pages become a site: Sphinx reads the Markdown beside this file. ``make docs`` builds it into out/docs."""

import re
from typing import Any

from sparsebench import __version__

project = "sparsebench"
author = "The sparsebench developers"
copyright = "The sparsebench developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# A warning is an error in `make docs`: a link or an anchor that leads nowhere is one.
nitpicky = True
# Tables of every variant, made from the ledger by `make report` for the report that links to them.
exclude_patterns = ["results.md"]

html_theme = "furo"
html_title = f"sparsebench {__version__}"
html_show_sphinx = False
html_copy_source = False
html_use_index = False
html_extra_path = ["sparsebench.schema.json", "results.md", "../report.md"]
html_theme_options = {"navigation_with_keys": True}

PUBLISHED = re.compile(r"\[([^]]+)\]\((?:\.\./)*(report\.md|results\.md)(?:#[\w-]+)?\)")
"""A link to the published report or to the tables of its results."""


def _copied(app: Any, page: str, source: list[str]) -> None:
    """The report and its results are no pages of the site: a link to one becomes a link to a copy of the file."""
    top = "../" * page.count("/")
    source[0] = PUBLISHED.sub(rf'<a class="reference external" href="{top}\2">\1</a>', source[0])


def setup(app: Any) -> None:
    app.connect("source-read", _copied)
