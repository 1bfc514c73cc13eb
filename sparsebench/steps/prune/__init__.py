"""Pruned variants of a model: masks with exact counts, one module per method, one pass for a whole sweep."""
