"""Figures: SQL over the ledger, drawn. Nothing here imports matplotlib before a figure is drawn."""

from sparsebench.figures.draw import Rendered, draw, listing, render
from sparsebench.figures.spec import KEYS, FigureSpec, parse

__all__ = ["KEYS", "FigureSpec", "Rendered", "draw", "listing", "parse", "render"]
