"""Figures: SQL over the ledger, drawn. Nothing here imports matplotlib before a figure is drawn."""

from sparsebench.figures.draw import Rendered, draw, listing, render
from sparsebench.figures.spec import KEYS, Spec, parse

__all__ = ["KEYS", "Rendered", "Spec", "draw", "listing", "parse", "render"]
