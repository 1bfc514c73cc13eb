"""Manifests: their shape (``schema``), and reading one with every error at its position (``load``)."""
