"""The names of families, precisions and lm-eval's kind of task, in manifests and options. Nothing here is slow to import."""

from __future__ import annotations

from typing import Literal, get_args

Family = Literal["encoder", "decoder", "encoder-decoder"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
FAMILIES: tuple[Family, ...] = get_args(Family)
LM_EVAL = "lm_eval"
"""The kind of every task from a folder of lm-eval's task files, whatever its name."""
