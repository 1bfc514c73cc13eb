"""Text through a model block by block, with one block's weights in memory at a time."""
