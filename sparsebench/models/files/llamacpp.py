"""llama.cpp's C library, as the package xllamacpp holds it: found, opened by ctypes, and its quantizer.

The package's own Python interface is a server. Its extension module also exports the functions of llama.h and ggml.h,
which are called here. Structures are passed whole, so that only the fields that are set need to be known.
"""

from __future__ import annotations

import ctypes
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import environment
from sparsebench.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PACKAGE = "xllamacpp"
INSTALL_HINT = f"pip install {environment.EXTRAS[PACKAGE]}"
"""The way out where the package is missing, or too new."""
PARAMETER_BYTES = 1024
"""Bytes passed for a structure of parameters: more than any release of llama.cpp has."""
MESSAGES: deque[str] = deque(maxlen=8)
"""The last lines that llama.cpp logged: they say why a model cannot be loaded."""
_INSTRUCTION_SETS = (
    "avx avx2 fma f16c avx_vnni avx512 avx512_vbmi avx512_vnni avx512_bf16 amx_int8 neon dotprod sve llamafile".split()
)


class Parameters(ctypes.Structure):
    """``llama_context_params`` or ``llama_model_params``; the first fields of the former have names."""

    _fields_ = [(name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max")] + [
        ("rest", c_uint32 * (PARAMETER_BYTES // 4 - 4))
    ]
    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int


class TokenBatch(ctypes.Structure):
    """``llama_batch``: the tokens of one call, which of them get logits, and where they stand."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(ctypes.c_int8)),
    ]
    n_tokens: int
    token: Any
    pos: Any
    n_seq_id: Any
    seq_id: Any
    logits: Any


_LOG = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_HANDLE = c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (_LOG, c_void_p)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (Parameters, ()),
    "llama_context_default_params": (Parameters, ()),
    "llama_model_load_from_file": (_HANDLE, (c_char_p, Parameters)),
    "llama_init_from_model": (_HANDLE, (_HANDLE, Parameters)),
    "llama_model_free": (None, (_HANDLE,)),
    "llama_free": (None, (_HANDLE,)),
    "llama_model_size": (ctypes.c_uint64, (_HANDLE,)),
    "llama_model_desc": (c_int32, (_HANDLE, c_char_p, c_size_t)),
    "llama_model_get_vocab": (_HANDLE, (_HANDLE,)),
    "llama_vocab_n_tokens": (c_int32, (_HANDLE,)),
    "llama_tokenize": (c_int32, (_HANDLE, c_char_p, c_int32, POINTER(c_int32), c_int32, ctypes.c_bool, ctypes.c_bool)),
    "llama_n_ctx": (c_uint32, (_HANDLE,)),
    "llama_n_batch": (c_uint32, (_HANDLE,)),
    "llama_set_n_threads": (None, (_HANDLE, c_int32, c_int32)),
    "llama_get_memory": (_HANDLE, (_HANDLE,)),
    "llama_memory_clear": (None, (_HANDLE, ctypes.c_bool)),
    "llama_memory_seq_rm": (ctypes.c_bool, (_HANDLE, c_int32, c_int32, c_int32)),
    "llama_batch_init": (TokenBatch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (TokenBatch,)),
    "llama_decode": (c_int32, (_HANDLE, TokenBatch)),
    "llama_get_logits_ith": (POINTER(c_float), (_HANDLE, c_int32)),
    "llama_set_embeddings": (None, (_HANDLE, ctypes.c_bool)),
    "llama_get_embeddings_ith": (POINTER(c_float), (_HANDLE, c_int32)),
    "llama_model_n_embd": (c_int32, (_HANDLE,)),
    "llama_print_system_info": (c_char_p, ()),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
}


@cache
def library() -> Any:
    """Open the library, with its functions declared.

    Raises UnsupportedError where the package is missing or lacks one of the functions.
    """
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise UnsupportedError(f"llama.cpp: the package {PACKAGE} is not installed", INSTALL_HINT)
    try:
        llama = ctypes.CDLL(str(next(Path(folders[0]).glob(f"{PACKAGE}*.so"))))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(llama, name)
            function.restype, function.argtypes = result, arguments
    except (StopIteration, OSError, AttributeError) as error:
        raise UnsupportedError(f"llama.cpp: the library of {PACKAGE} cannot be used ({error})", INSTALL_HINT) from error
    llama.llama_log_set(_keep_message, None)
    llama.llama_backend_init()
    defaults = llama.llama_context_default_params()
    if (defaults.n_ctx, defaults.n_seq_max) != (512, 1):
        raise UnsupportedError(f"llama.cpp: {PACKAGE} lays its parameters out in another way", INSTALL_HINT)
    return llama


@_LOG
def _keep_message(level: int, text: bytes, _: object) -> None:
    if level >= 3:  # GGML_LOG_LEVEL_WARN
        MESSAGES.append(text.decode(errors="replace").strip())


def version() -> str:
    """Return the package's version, whose last number is that of llama.cpp's release."""
    return environment.versions()[PACKAGE]


def instruction_sets() -> str:
    """Return the instruction sets that the library was compiled for, such as ``avx avx2 fma``."""
    return " ".join(name for name in _INSTRUCTION_SETS if getattr(library(), f"ggml_cpu_has_{name}")())


def quantize(
    weights: npt.NDArray[np.float32], ggml_type: int, row_bytes: int, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """Return the rows of a matrix (out, in) in ggml's type of this number, each ``row_bytes`` long.

    ``importance`` (in,) are the mean squares of the inputs, by which errors are weighted. Rows are shared by threads.
    """
    import numpy as np

    quantize_chunk = library().ggml_quantize_chunk
    source, (rows, columns) = np.ascontiguousarray(weights, np.float32), weights.shape
    quantized = np.empty((rows, row_bytes), np.uint8)
    squares = None if importance is None else np.ascontiguousarray(importance, np.float32)
    squares_pointer = None if squares is None else squares.ctypes.data
    threads = environment.cores()
    rows_per_thread = -(-rows // threads)

    def quantize_rows(first: int) -> None:
        count, start = min(rows_per_thread, rows - first), first * columns
        quantize_chunk(ggml_type, source.ctypes.data, quantized.ctypes.data, start, count, columns, squares_pointer)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(quantize_rows, range(0, rows, rows_per_thread)))
    return quantized
