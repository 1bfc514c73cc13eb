"""Sparsified versions of a model: masks with exact counts, one file per method, one pass for a whole sweep."""
