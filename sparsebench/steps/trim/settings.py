"""The settings of ``trim`` in a manifest, for each way to choose the tokens that are kept."""

from __future__ import annotations

from typing import ClassVar, Self

from sparsebench.manifest.schema import Count, NonEmpty, wrong
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Settings


class Trim(Settings):
    """What all ways to trim share."""

    calculates_with: ClassVar = ("transformers", "tokenizers")

    def describe(self) -> str:
        """Return a label such as ``trim passages.jsonl min_count=2``: text or list, and non-default settings."""
        changed = self.unusual()
        chosen_by = changed.pop("source", None) or changed.pop("file", None)
        name = Reference.parse(chosen_by).name if chosen_by else self.name
        return " ".join(["trim", name, *(f"{key}={value}" for key, value in changed.items())])


class Corpus(Trim):
    """Remove from the vocabulary the tokens that a corpus does not use."""

    text_keys: ClassVar = {"source": ("field", "target")}

    source: NonEmpty | None = None
    """The corpus, in any notation that `calibration` takes (`path:`, `wheel:`, `hf:datasets/…`), read whole; default:
    the file of the manifest's calibration text. A result is identified by the corpus's content, not by its name."""
    field: NonEmpty | None = None
    """The column that holds the text, where the source has columns."""
    target: NonEmpty | None = None
    """A second column whose texts count as well: what an encoder-decoder writes."""
    min_count: Count = 1
    """How many times the corpus must use a token to keep it."""
    characters: bool = True
    """Whether all tokens of a single character are kept too, so that any other text can still be tokenized; `false`
    removes those that the corpus does not use. Bytes, special and added tokens are always kept."""

    def completed(self) -> Self:
        if self.target is not None and self.field is None:
            raise wrong("`target` without `field`", "`field` names the first column", at="target")
        return super().completed()


class Tokens(Trim):
    """Remove from the vocabulary the tokens that a file does not list."""

    file_keys: ClassVar = ("file",)
    needs: ClassVar = {"file": "a text file with a token a line, such as tokens.txt"}

    file: NonEmpty | None = None
    """A text file with one token on each line, as the tokenizer spells it (`Ġthe`, `##ing`, `▁house`). A result is
    identified by the file's content."""
    characters: bool = True
    """Whether all tokens of a single character are kept too, so that any text can still be tokenized."""


def settings() -> dict[str, type[Settings]]:
    """Return the settings class of each way to choose the tokens that are kept, by name."""
    return {"corpus": Corpus, "list": Tokens}
