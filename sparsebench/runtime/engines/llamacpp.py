"""llama.cpp, as the package xllamacpp holds it: decoders and BERT from GGUF files, one sequence at a time, on a CPU.

A model that is no GGUF variant is written as a GGUF file of floats first, before anything is timed. Phases are the same
as with other engines: the whole prompt, one more token, and a greedy generation, each with the choice of the token.
llama.cpp keeps keys and values in float16 and multiplies quantized weights by activations rounded to eight bits.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsebench.errors import MeasureError, SparsebenchError, UnsupportedError
from sparsebench.models.files import llamacpp, precision
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.gguf import check, write_first_blocks
from sparsebench.models.files.gguf_variant import GGUF_FILE, gguf_file
from sparsebench.models.gguf_writer import FLOATS, write_gguf
from sparsebench.models.modules.build import build_model
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.parity import PARITY_TOKENS, SHORT_TOKENS, TOLERANCE, checked, distance, outputs, shorten
from sparsebench.runtime.results import PARITY_BLOCKS, Parity
from sparsebench.runtime.workload import Phase, Prompt

USUAL_BATCH = 2048
"""The most tokens of one call by llama.cpp's default; a longer prompt raises it."""
ROUNDED = 4.0
"""How far the logits may be from those of the same weights in float32, in units of what bfloat16 moves
them, whatever the file's precision. On SmolLM2-135M it is 1.8 for Q8_0; what llama.cpp computes otherwise moved tiny
models by 50 and more."""


class LlamaContext:
    """A loaded model with room for ``tokens`` tokens: ``decode`` runs some, ``logits`` reads what they gave.

    An ``encoder`` gives hidden states instead of logits, and keeps nothing.
    """

    def __init__(self, file: Path, tokens: int, encoder: bool = False) -> None:
        library = self.library = llamacpp.library()
        llamacpp.MESSAGES.clear()
        self.model = library.llama_model_load_from_file(str(file).encode(), library.llama_model_default_params())
        if not self.model:
            hint = "measure it with another engine, or try a newer build of llama.cpp"
            raise UnsupportedError(f"llama.cpp cannot load this model: {' '.join(llamacpp.MESSAGES)}", hint)
        parameters = library.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_seq_max = tokens, max(tokens, USUAL_BATCH), 1
        if encoder:  # every token reads all others: they cannot be computed in parts
            parameters.n_ubatch = parameters.n_batch
        self.context = library.llama_init_from_model(self.model, parameters)
        if not self.context or library.llama_n_ctx(self.context) < tokens:
            raise MeasureError(f"llama.cpp: no context of {tokens} tokens: {' '.join(llamacpp.MESSAGES)}")
        library.llama_set_n_threads(self.context, *[torch.get_num_threads()] * 2)
        self.memory = library.llama_get_memory(self.context)
        self.batch = library.llama_batch_init(tokens, 0, 1)
        library.llama_set_embeddings(self.context, encoder)
        self.read_output = library.llama_get_embeddings_ith if encoder else library.llama_get_logits_ith
        vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        self.width = library.llama_model_n_embd(self.model) if encoder else vocabulary
        self.length = 0
        weakref.finalize(self, _free, library, self.batch, self.context, self.model)

    def decode(self, ids: Sequence[int], all_logits: bool = False) -> None:
        """Run ``ids`` after what was read; only the last token gets logits unless ``all_logits``."""
        batch, last = self.batch, len(ids) - 1
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, self.length + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = all_logits or index == last
        if code := self.library.llama_decode(self.context, batch):
            raise MeasureError(f"llama.cpp: llama_decode gave {code}: {' '.join(llamacpp.MESSAGES)}")
        self.length += len(ids)

    def logits(self, index: int = -1) -> Any:
        """Return the logits of a token of the last call, as numbers that the next call overwrites."""
        return np.ctypeslib.as_array(self.read_output(self.context, index), (self.width,))

    def likeliest_token(self) -> list[int]:
        """Return the likeliest next token."""
        return [int(self.logits().argmax())]

    def forget(self, kept_tokens: int = 0) -> None:
        """Drop all but the first ``kept_tokens``."""
        if kept_tokens == 0:
            if self.memory:
                self.library.llama_memory_clear(self.memory, False)
        elif not self.library.llama_memory_seq_rm(self.memory, 0, kept_tokens, -1):
            raise MeasureError("llama.cpp cannot drop single tokens of this model's cache", "leave the model out")
        self.length = kept_tokens


def _free(library: Any, batch: Any, context: Any, model: Any) -> None:
    library.llama_batch_free(batch)
    library.llama_free(context)
    library.llama_model_free(model)


class LlamaPhase(Phase):
    """A phase by its functions; with a cache, llama.cpp keeps that to itself."""

    def __init__(self, name: str, step: Callable[[], None], begin: Callable[[], None] = lambda: None) -> None:
        self.name, self.cache = name, () if name == "forward" else None
        self._step, self._begin = step, begin

    def begin(self) -> None:
        self._begin()

    def step(self) -> None:
        self._step()


class LlamaModel:
    """A loaded model with phases and outputs of its own; ``module`` is an empty stand-in that states the precision."""

    def __init__(self, file: Path, tokens: int, dtype: str, family: str) -> None:
        self.encoder = family == "encoder"
        self.context = LlamaContext(file, tokens, self.encoder)
        self.module: Any = torch.nn.Module()
        self.module.dtype = getattr(torch, dtype)
        self.hidden_bytes = int(llamacpp.library().llama_model_size(self.context.model))

    def phases(self, prompt: Prompt, generate: int) -> list[Phase]:
        """Return the phases, in the order in which they feed each other: the whole prompt, one token behind it (every
        block starts again at the end of the prompt), and a greedy generation of exactly ``generate`` tokens."""
        context, ids = self.context, prompt.ids[0].tolist()
        first: list[int] = []
        token: list[int] = []

        def forward() -> None:
            context.forget()
            context.decode(ids, all_logits=True)

        def prefill() -> None:
            context.forget()
            context.decode(ids)
            first[:] = token[:] = context.likeliest_token()

        def rewind() -> None:
            if context.length < len(ids) or not first:
                prefill()
            context.forget(len(ids))
            token[:] = first

        def decode() -> None:
            context.decode(token)
            token[:] = context.likeliest_token()

        def write_tokens() -> None:
            prefill()
            for _ in range(generate - 1):
                decode()

        if self.encoder:
            return [LlamaPhase("forward", forward)]
        return [
            LlamaPhase("prefill", prefill),
            LlamaPhase("decode", decode, rewind),
            LlamaPhase("generate", write_tokens),
        ]

    def outputs(self, prompt: Prompt) -> torch.Tensor:
        """Return what ``parity.outputs`` does: the logits of PARITY_TOKENS tokens, of a few and of one, the last by the cache."""
        logits = []
        for tokens in (PARITY_TOKENS, SHORT_TOKENS, 1):
            ids = prompt.ids[0, :tokens].tolist()
            self.context.forget()
            for tokens_at_once in [ids] if self.encoder else filter(None, (ids[:-1], ids[-1:])):
                self.context.decode(tokens_at_once, all_logits=True)
                logits += [torch.from_numpy(self.context.logits(index).copy()) for index in range(len(tokens_at_once))]
        return torch.cat(logits)


class LlamaCpp:
    """llama.cpp in one process."""

    forced = False

    def __init__(self, scratch: Path | None = None) -> None:
        """``scratch`` is where files are written; by default the process's temporary folder, which its run removes."""
        self.scratch = scratch
        self.files: dict[tuple[Path, str], Path | SparsebenchError] = {}
        self.kernel = ""

    def start(self, rank: int, ranks: int) -> tuple[str, ...]:
        """Open the library; the note says what it was compiled for."""
        return (f"llama.cpp of {llamacpp.PACKAGE} {llamacpp.version()}, compiled for {llamacpp.instruction_sets()}",)

    def prepare(self, sources: Sequence[SavedModel]) -> None:
        """Write the GGUF file of each model that is none, once for all processes; no load is timed with that.

        One thread does it: a process that is forked after OpenMP has begun more would wait for them for ever.
        """
        torch.set_num_threads(1)
        for source in sources:
            key = source.folder, dtype_of(source)
            if key not in self.files:
                try:
                    self.files[key] = self._gguf_file(*key)
                except SparsebenchError as error:  # that model's alone: the others are timed
                    self.files[key] = error

    def _gguf_file(self, folder: Path, dtype: str) -> Path:
        """Return the file of a GGUF variant, whose header is checked, as a folder may be a stranger's; else write one."""
        if file := gguf_file(folder):
            check(file)
            return file
        file = Path(tempfile.mkdtemp(dir=self.scratch)) / GGUF_FILE
        write_gguf(folder, file, FLOATS[dtype])
        return file

    def file(self, source: SavedModel) -> Path:
        """Return the GGUF file of a prepared model, or raise what was met when it was written."""
        file = self.files[source.folder, dtype_of(source)]
        if isinstance(file, SparsebenchError):
            raise file
        return file

    def load(self, source: SavedModel, tokens: int, baseline: bool) -> LlamaModel:
        """Load the model's GGUF file, baseline or not."""
        model = LlamaModel(self.file(source), tokens, dtype_of(source), source.family)
        description = ctypes.create_string_buffer(256)
        llamacpp.library().llama_model_desc(model.context.model, description, len(description))
        self.kernel = f"llama.cpp, {description.value.decode()}, {llamacpp.instruction_sets()}"
        return model

    def parity(self, source: SavedModel, prompt: Prompt) -> Parity:
        """Compare with the same weights in float32 by torch, on the first blocks.

        Raises ParityError where the difference is larger than rounding explains.
        """
        dtype, weights = dtype_of(source), Checkpoint(source.folder)
        exact = outputs(build_model(weights, source.family, "float32", shorten), source.family, prompt)
        rounded = outputs(build_model(weights, source.family, "bfloat16", shorten), source.family, prompt)
        with tempfile.TemporaryDirectory() as folder:
            file = write_first_blocks(self.file(source), Path(folder) / "short.gguf", PARITY_BLOCKS)
            away = distance(LlamaModel(file, PARITY_TOKENS, dtype, source.family).outputs(prompt), exact)
        parity = Parity(away, ROUNDED * distance(rounded, exact) + TOLERANCE, dtype, PARITY_BLOCKS, False)
        return checked(parity, "report the model's architecture: its GGUF file is wrong")


def dtype_of(source: SavedModel) -> str:
    """Return the precision that a saved model is measured in, by torch's name."""
    weights = Checkpoint(source.folder)
    return precision.resolve(source.dtype, weights.config, weights.tensors)
