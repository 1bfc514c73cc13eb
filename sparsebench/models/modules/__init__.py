"""Models that run: built from transformers' code, and the modules that replace its own."""
