"""A user's folder of lm-eval task files: read as data, so that no file runs code, reads elsewhere or asks the network.

lm-eval's own reader lets a file name any Python code (``!function`` and every other YAML tag), a metric that `evaluate`
downloads as a script, data anywhere, and templates that reach Python objects. ``KEYS`` says what a file may hold; the same
check is made of every file, and again of what lm-eval has merged out of files, groups and their members. ``folder_task``
reads the data and limits what templates and patterns take.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sparsebench import bounded
from sparsebench.errors import BenchmarkError
from sparsebench.manifest.problems import did_you_mean

Files = dict[Path, dict[str, Any]]
"""Task files by their paths within the folder."""


def definitions(folder: Path, task: str) -> Files:
    """Return every task file of a folder, checked, with what it includes; one must declare ``task``, or a group of that name.

    Hidden files are left out, as in the folder's hash. Raises BenchmarkError naming the file and the key.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: a file, where a folder of lm-eval's task files is needed", "name the folder")
    paths = (path.relative_to(folder) for path in sorted(folder.glob("**/*.yaml")))
    allowance = bounded.Allowance()
    files = {
        path: _read_settings(folder / path, allowance)
        for path in paths
        if not any(part.startswith(".") for part in path.parts)
    }
    for path, settings in files.items():
        check(folder, folder / path, settings)
    by_resolved_path = {(folder / path).resolve(): settings for path, settings in files.items()}
    files = {path: _merged(folder / path, by_resolved_path, set()) for path in files}
    groups: dict[str, list[Any]] = {}
    for path, settings in files.items():
        if members := _members(settings):
            if settings["group"] in groups:
                raise BenchmarkError(f"{folder / path}: `group` {settings['group']} is in two files", "rename one")
            groups[settings["group"]] = members
    names = {settings[key] for settings in files.values() for key in ("task", "group") if _has_text(settings, key)}
    if task not in names:
        hint = f"it has {', '.join(sorted(names)[:20])}" if names else "no .yaml file in it declares a `task`"
        raise BenchmarkError(f"{folder}: no task {task!r} in it", did_you_mean(task, names) or hint)
    _count_members(folder, groups.get(task, []), groups, {task})
    return files


def _read_settings(path: Path, allowance: bounded.Allowance) -> dict[str, Any]:
    import yaml

    text = bounded.read(path, BenchmarkError, bounded.MANIFEST_BYTES)
    try:
        with bounded.without_collection(), allowance.use(str(path), BenchmarkError, 1 + len(text) // 1000):
            # As lm-eval reads it; libyaml also refuses what is nested too deep.
            settings = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        tag = str(error.problem).rpartition("for the tag ")[2] or "a tag"
        raise BenchmarkError(f"{path}:{line}: {tag} names Python code, which is not run", WAY_OUT) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{path}: not YAML ({reason})", "mend it, or take it out of the folder") from error
    if not isinstance(settings, dict):
        raise BenchmarkError(f"{path}: it holds no mapping", "mend it, or take it out of the folder")
    return settings


def _merged(path: Path, files: Files, visited: set[Path]) -> dict[str, Any]:
    """Return a file's keys over those of the files that it includes, as lm-eval merges them. Each may occur once.

    ``files`` are by their resolved paths; ``visited`` are those that were merged before, resolved.
    """
    visited.add(path.resolve())
    settings = files[path.resolve()]
    merged: dict[str, Any] = {}
    names = settings.get("include") or []
    for name in names if isinstance(names, list) else [names]:
        resolved: Path | None = None
        with suppress(ValueError):  # a NUL in it
            resolved = (path.parent / name).resolve()
        if resolved not in files or resolved in visited:
            problem = "is included twice" if resolved in visited else "is no task file of this folder"
            raise BenchmarkError(f"{path}: `include`: {name[:200]!r} {problem}", "copy it there, and include it once")
        if len(visited) == bounded.DEPTH:
            raise BenchmarkError(f"{path}: `include`: more than {bounded.DEPTH} files in all", "copy them into one")
        merged |= _merged(path.parent / name, files, visited)
    return merged | {key: value for key, value in settings.items() if key != "include"}


def _has_text(settings: Mapping[str, Any], key: str) -> bool:
    return isinstance(settings.get(key), str)


def _members(settings: Any) -> list[Any]:
    """Return what a group consists of; empty for a task or a name."""
    members = settings.get("task") if isinstance(settings, Mapping) and _has_text(settings, "group") else None
    return members if isinstance(members, list) else []


def _count_members(folder: Path, members: list[Any], groups: Mapping[str, list[Any]], above: set[str]) -> int:
    """Return how many tasks and groups a group has within it. Raises BenchmarkError for a group within itself."""
    total = 0
    for member in members:
        name = member if isinstance(member, str) else str(member.get("group", member.get("task")))
        if name in above:
            raise BenchmarkError(f"{folder}: `group` {name} is within itself", "take it out of its own list")
        if len(above) == bounded.DEPTH:
            raise BenchmarkError(f"{folder}: `group` {name} is more than {bounded.DEPTH} deep", "list its tasks above")
        total += 1 + _count_members(folder, groups.get(name) or _members(member), groups, above | {name})
        if total > bounded.WHEEL_FILES:
            raise BenchmarkError(f"{folder}: more than {bounded.WHEEL_FILES:,} tasks in a `group`", "list fewer")
    return total


SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "json": (".json", ".jsonl", ".ndjson"), "csv": (".csv", ".tsv"), "parquet": (".parquet",), "arrow": (".arrow",),
    "text": (".txt",),
}  # fmt: skip
"""The suffixes of data files by a task's `dataset_path`; .gz or .zst may follow."""
MOST_CHOICES = 1000
"""Most choices, or right answers, of a document."""
_REFUSED = {
    "class": "names Python code",
    "custom_dataset": "names Python code",
    "process_docs": "names Python code",
    "process_results": "names Python code",
    "use_prompt": "names another file, or a package",
    "unsafe_code": "runs what a model writes",
    "doc_to_image": "names other files",
    "doc_to_audio": "names other files",
    "hf_evaluate": "runs a script of the hub's",
}
"""Keys of lm-eval that are refused, each with the reason."""
WAY_OUT = "write it without, or as a plugin (docs/howto/own-benchmark.md), which is code that you trust"


class Characters(NamedTuple):
    """A text of ``most`` characters."""

    most: int


class Items(NamedTuple):
    """A list of ``most`` things at most, each as ``of`` says."""

    of: Any
    most: int = bounded.YAML_NODES


_DELIMITER = Characters(1000)
_PROMPT = {
    "doc_to_text": (str, int),
    "doc_to_target": (str, int, Items(object, MOST_CHOICES)),
    "doc_to_choice": (str, Items(str, MOST_CHOICES), dict),
    "target_delimiter": _DELIMITER,
    "fewshot_delimiter": _DELIMITER,
    "gen_prefix": str,
}
_METRIC = {
    "metric": str, "aggregation": str, "higher_is_better": bool, "ignore_case": bool, "ignore_punctuation": bool,
    "ignore_numbers": bool, "regexes_to_ignore": Items(str), "weight_by_size": bool,
}  # fmt: skip
_FILTER = {
    "function": str, "regex_pattern": str, "group_select": int, "fallback": (str, Items(str)), "ignore_case": bool,
    "ignore_punctuation": bool, "regexes_to_ignore": Items(str), "k": int, "mapping_dict": dict, "default_value": object,
}  # fmt: skip
_GENERATION = {
    "until": (_DELIMITER, Items(_DELIMITER, 100)), "max_gen_toks": range(1, 32_769), "max_new_tokens": range(1, 32_769),
    "do_sample": bool, "temperature": (float, int), "top_p": (float, int), "top_k": int, "num_beams": range(1, 17),
}  # fmt: skip
_DATA = {
    "data_files": (str, Items(str), dict), "sep": Characters(1), "delimiter": Characters(1), "column_names": Items(str),
    "header": int, "trust_remote_code": bool,
}  # fmt: skip
_AGGREGATE = {"metric": str, "filter_list": (str, Items(str)), "aggregation": str, "weight_by_size": bool}
KEYS: Mapping[str, Any] = {
    **_PROMPT,
    "task": (str, list), "task_alias": str, "tag": (str, Items(str)), "group": str, "group_alias": str,
    "include": (str, Items(str)), "metadata": object,
    "aggregate_metric_list": (_AGGREGATE, Items(_AGGREGATE)),
    "dataset_path": frozenset(SUFFIXES), "dataset_name": str, "dataset_kwargs": _DATA,
    "training_split": str, "validation_split": str, "test_split": str, "fewshot_split": str,
    "output_type": str, "description": str, "should_decontaminate": bool, "doc_to_decontamination_query": str,
    "num_fewshot": range(101), "repeats": range(1, 101),
    "fewshot_config": {
        **_PROMPT, "sampler": str, "split": str, "fewshot_indices": Items(int), "samples": Items(dict, MOST_CHOICES),
    },
    "generation_kwargs": _GENERATION,
    "metric_list": Items(_METRIC),
    "filter_list": Items({"name": str, "filter": Items(_FILTER)}),
}  # fmt: skip
"""The keys of a task or group, each with what it may hold. A key that says null or false says nothing."""


def check(folder: Path, where: Path | str, settings: Mapping[str, Any]) -> None:
    """Check a task, a group with its members, or a part of either. Raises BenchmarkError naming ``where`` and the key."""
    for key, value in settings.items():
        if value is None or value is False:
            continue
        if key in KEYS:
            _check_size(where, key, value)
        _check_value(where, str(key), value, KEYS.get(key))
    data_files(folder, where, settings.get("dataset_kwargs") or {})
    members = settings.get("task")
    for member in members if isinstance(members, list) else ():
        if isinstance(member, Mapping):
            check(folder, where, member)
        elif not isinstance(member, str):
            raise BenchmarkError(f"{where}: `task` lists {member!r}", "list names of tasks, or tasks")


def data_files(folder: Path, where: Path | str, settings: Mapping[str, Any]) -> dict[str, list[Path]]:
    """Return the data files of each split, resolved. Raises BenchmarkError for what is not a file of the folder."""
    stated = settings.get("data_files")
    if stated is None:
        return {}
    splits = stated if isinstance(stated, Mapping) else {"train": stated}
    files = {}
    for split, names in splits.items():
        files[str(split)] = [
            _file_inside(folder, where, name) for name in (names if isinstance(names, list) else [names])
        ]
        if len(set(files[str(split)])) < len(files[str(split)]):
            raise BenchmarkError(f"{where}: `data_files` names a file twice for {split}", "name it once")
    return files


def _file_inside(folder: Path, where: Path | str, name: Any) -> Path:
    home = folder.resolve()
    try:
        path = (folder / name).resolve()
        parts = path.relative_to(home).parts
        # Hidden files are not part of a folder's hash.
        if path.is_file() and not any(part.startswith(".") for part in parts):
            return path
    except (OSError, ValueError, TypeError, RuntimeError):
        pass
    raise BenchmarkError(
        f"{where}: `data_files`: {str(name)[:200]!r} is no file of this folder",
        "copy the file into the folder, not hidden, and name its path from there, without wildcards",
    )


def _check_size(where: Path | str, key: str, value: Any) -> None:
    """Refuse a value that is nested too deep, or too large with its aliases written out."""
    pending, nodes, characters = [(value, 0)], bounded.YAML_NODES, bounded.MB
    while pending:
        item, depth = pending.pop()
        nodes -= 1
        characters -= len(item) if isinstance(item, str | bytes) else 0
        # Python writes no number of 4,300 digits.
        if isinstance(item, int) and item.bit_length() > bounded.KEY_CHARACTERS:
            nodes = -1
        if nodes < 0 or characters < 0 or depth > bounded.DEPTH:
            limits = f"{bounded.YAML_NODES:,} values, {bounded.MB:,} characters, {bounded.DEPTH} levels"
            raise BenchmarkError(f"{where}: `{key}` is too large; the limits are {limits}", "shorten it")
        if isinstance(item, Mapping):
            pending += [(child, depth + 1) for pair in item.items() for child in pair]
        elif isinstance(item, list | tuple | set):
            pending += [(child, depth + 1) for child in item]


def _check_value(where: Path | str, key: str, value: Any, allowed: Any) -> None:
    """Check that ``value`` is what is allowed at ``key``, a path with dots; allowed None means an unknown key."""
    if allowed is None:
        reason = _REFUSED.get(key.rpartition(".")[2], "is no key that is read here")
        raise BenchmarkError(f"{where}: `{key[: bounded.KEY_CHARACTERS]}` {reason}", WAY_OUT)
    alternatives = allowed if type(allowed) is tuple else (allowed,)
    for kind in alternatives:
        if isinstance(kind, dict) and isinstance(value, Mapping):
            for name, item in value.items():
                if item is not None and item is not False:
                    _check_value(where, f"{key}.{name}", item, kind.get(name))
            return
        if isinstance(kind, Items) and isinstance(value, list) and len(value) <= kind.most:
            for item in value:
                _check_value(where, key, item, kind.of)
            return
        if _matches(value, kind):
            return
    raise BenchmarkError(
        f"{where}: `{key}`: {str(value)[:80]!r} does not fit",
        f"it is {' or '.join(dict.fromkeys(map(_described, alternatives)))}",
    )


def _matches(value: Any, kind: Any) -> bool:
    if isinstance(kind, range):
        return type(value) is int and value in kind
    if isinstance(kind, frozenset):
        return isinstance(value, str) and value in kind
    if isinstance(kind, Characters):
        return isinstance(value, str) and len(value) <= kind.most
    return isinstance(kind, type) and isinstance(value, kind) and (kind is not int or value is not True)


def _described(kind: Any) -> str:
    if isinstance(kind, range):
        return f"a whole number from {kind[0]} to {kind[-1]}"
    if isinstance(kind, frozenset):
        return f"one of {', '.join(sorted(kind))}"
    if isinstance(kind, Characters):
        return f"a text of at most {kind.most:,} characters"
    if isinstance(kind, Items):
        return f"a list of at most {kind.most:,}"
    if isinstance(kind, dict):
        return f"a mapping with {', '.join(kind)}"
    return {str: "text", dict: "a mapping", list: "a list", bool: "true or false"}.get(kind, "a number")
