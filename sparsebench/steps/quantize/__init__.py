"""Quantization of linear weights to 8 or 4 bits: rounding to the nearest, or column by column (GPTQ)."""
