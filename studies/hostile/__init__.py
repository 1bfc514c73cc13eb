"""Hostile inputs: each is built in a sandbox beside canaries, given to the program, and judged by what became of them."""
