"""Skipping: for each token, weights that would be multiplied with values near zero are not read; no weight changes."""
