"""Figures: SQL over the ledger, drawn. Nothing here imports matplotlib before a figure is drawn."""

from sparsebench.figures.draw import Rendered, draw, each, listing, render
from sparsebench.figures.spec import KEYS, Spec, parse

__all__ = ["KEYS", "Rendered", "Spec", "draw", "each", "listing", "parse", "render"]
