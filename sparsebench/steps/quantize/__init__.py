"""Linear weights on a grid of 8 or 4 bits: rounded to the nearest, or column by column (GPTQ)."""
