"""Vocabulary trimming: tokens that a text does not use are removed from tokenizer, embeddings and output head."""
