"""Sparsified versions of a model: masks with exact counts, one file per method, one pass for a whole sweep."""

VERSION = 1
"""Bumped by hand when a change here can change a variant's weights."""
