"""Pictures as data URIs: a drawing where there is one beside the bitmap, since it stays sharp at every size."""

from __future__ import annotations

import base64
import re
from pathlib import Path

HEAVY = 1_500_000
"""Bytes from which a drawing is left for its bitmap: one of very many points."""


def embedded(path: Path) -> str:
    """The picture at ``path`` as a data URI."""
    drawing = path.with_suffix(".svg")
    if drawing.is_file() and drawing.stat().st_size <= HEAVY:
        return _uri("image/svg+xml", _lean(drawing.read_text(encoding="utf-8")).encode())
    return _uri("image/png", path.read_bytes())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _lean(svg: str) -> str:
    """An SVG without its prolog, metadata, comments and spare white space."""
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r">\s+<", "><", re.sub(r"\s+", " ", svg)).strip()
