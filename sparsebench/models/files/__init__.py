"""A model's folder: its configuration, weights in all formats, tokenizer, and how folders are written."""
