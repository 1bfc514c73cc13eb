"""Mutated inputs by the thousand, read in process: whatever becomes of one is a success or an error of ours."""
