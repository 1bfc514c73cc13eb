"""Reads YAML as plain data, with the position of each key and value in the file.

Scalars follow YAML 1.2 (its core schema), not PyYAML's 1.1: `1e-4` is a number, `no` and `on` are text,
`1:10` is a pattern and not 70, `010` is ten. Keys are always text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.composer import Composer, ComposerError
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from sparsebench import bounded
from sparsebench.manifest.problems import Problem

KeyPath = tuple[str | int, ...]
"""The path to a value: keys and list indices from the top."""

_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[re.Pattern[str], list[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""], lambda text: None),
    "bool": (re.compile(r"(true|True|TRUE|false|False|FALSE)\Z"), [*"tTfF"], lambda text: text.lower() == "true"),
    "int": (
        re.compile(r"([-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,200})\Z"),
        [*"-+0123456789"],
        lambda text: int(text, 0) if text[1:2] in ("o", "x") else int(text),
    ),
    "float": (
        re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"),
        [*"-+.0123456789"],
        lambda text: float(re.sub(r"\.(?=[in])", "", text.lower())),
    ),
    "str": (re.compile(r""), [], str),
}
_SYNTAX_HINT = "close brackets and quotes, indent alike with spaces, and quote a text with special characters"
_LINE_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
"""As PyYAML counts lines."""
_FORBIDDEN = re.compile("[\0\ud800-\udfff]")
_FORBIDDEN_PROBLEM = "an escape such as `\\ud800` that is half of a character, or `\\0`"


@dataclass(frozen=True)
class Span:
    """A position in the text: line and column from 0, and how many characters of that line it covers."""

    line: int
    column: int
    length: int = 1


@dataclass(frozen=True)
class Positions:
    """The positions of a file's keys and values."""

    path: str
    lines: tuple[str, ...]
    values: Mapping[KeyPath, Span] = field(default_factory=dict, repr=False)
    keys: Mapping[KeyPath, Span] = field(default_factory=dict, repr=False)

    def problem(
        self, at: KeyPath, message: str, expected: str = "", hint: str = "", *, on_key: bool = False
    ) -> Problem:
        """Return a problem with the value at ``at`` (or its key); if the file lacks it, with what would hold it."""
        at = nearest = self.in_file(at)
        spans = self.keys if on_key and at in self.keys else self.values
        while nearest and nearest not in spans:
            nearest, spans = nearest[:-1], self.values
        return self.problem_at(spans.get(nearest, Span(0, 0)), message, expected, hint, dotted(at))

    def in_file(self, at: KeyPath) -> KeyPath:
        """Return the path without the index of a value that the file has alone, in place of a list."""
        path: KeyPath = ()
        for step in at:
            if isinstance(step, str) or (*path, step) in self.values:
                path = (*path, step)
        return path

    def text(self, at: KeyPath) -> str:
        """Return the value at ``at`` as it is written, if it is a scalar on one line."""
        span = self.values.get(self.in_file(at), Span(0, 0, 0))
        return self.lines[span.line][span.column : span.column + span.length]

    def problem_at(self, span: Span, message: str, expected: str = "", hint: str = "", key: str = "") -> Problem:
        """Return a problem with a stretch of text."""
        excerpt = self.lines[span.line] if span.line < len(self.lines) else ""
        return Problem(
            self.path, span.line + 1, span.column + 1, key, message, expected, hint, excerpt, max(1, span.length)
        )


def dotted(at: KeyPath) -> str:
    """Return ``("models", 0, "source")`` as ``models[0].source``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in at).removeprefix(".")


def read_yaml(text: str, path: str) -> tuple[Any, Positions, list[Problem]]:
    """Return the data of one YAML document, the positions of its keys and values, and what is wrong with it as YAML."""
    positions = Positions(path, tuple(_LINE_BREAK.split(text)))
    builder = _Builder(positions)
    try:
        node = _Loader(text).get_single_node()
        data = None if node is None else builder.value(node, (), ())
    except yaml.YAMLError as error:
        return None, positions, [_syntax_problem(error, text, positions)]
    return data, Positions(path, positions.lines, builder.values, builder.keys), builder.problems


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's loader up to its nodes, with the plain scalars of YAML 1.2."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.count = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node as PyYAML does, within limits of depth and number."""
        self.count += 1
        self.depth += 1
        _check_limits(self.count, self.depth, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _name, (_pattern, _first, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, which quotes a text where the loader above would read something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def flow(value: Any) -> str:
    """Return a value as YAML on one line; ``read_yaml`` reads it back as it was."""
    text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _check_limits(count: int, depth: int, mark: yaml.Mark) -> None:
    if depth > bounded.DEPTH:
        raise ComposerError(None, None, f"more than {bounded.DEPTH} levels of lists and mappings", mark)
    if count > bounded.YAML_NODES:
        raise ComposerError(
            None, None, f"more than {bounded.YAML_NODES:,} keys and values, repeated ones included", mark
        )


class _Builder:
    """Turns nodes into data and notes positions and problems on the way."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.values: dict[KeyPath, Span] = {}
        self.keys: dict[KeyPath, Span] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def value(self, node: yaml.Node, at: KeyPath, ancestors: tuple[yaml.Node, ...]) -> Any:
        """Return the data of ``node``, at the path ``at``, below the nodes ``ancestors``."""
        self.count += 1
        _check_limits(self.count, len(ancestors), node.start_mark)
        self.values[at] = _span(node)
        tag = node.tag.removeprefix(_TAG)
        if any(node is other for other in ancestors):
            return self._report(node, at, "an alias inside the value that it repeats", "", "write the value out")
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, at, (*ancestors, node))
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.value(item, (*at, index), (*ancestors, node)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and tag in _SCALARS:
            pattern, _, convert = _SCALARS[tag]
            if _FORBIDDEN.search(node.value):
                return self._report(node, at, _FORBIDDEN_PROBLEM, "text", "write the character itself")
            if pattern.match(node.value):
                return convert(node.value)
        return self._report(node, at, f"`!{tag}` does not fit here", "a value without a tag", "remove the tag")

    def _mapping(self, node: yaml.MappingNode, at: KeyPath, ancestors: tuple[yaml.Node, ...]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if fault := self._key_fault(key_node, at, data):
                self._report(key_node, *fault)
                continue
            key = key_node.value
            self.keys[(*at, key)] = _span(key_node)
            data[key] = self.value(value_node, (*at, key), ancestors)
        return data

    def _key_fault(
        self, node: yaml.Node, at: KeyPath, earlier: Collection[str]
    ) -> tuple[KeyPath, str, str, str] | None:
        """Return what is wrong with a key of the mapping at ``at``, None if nothing: its path, what, and what instead."""
        if not isinstance(node, yaml.ScalarNode):
            return at, "a list or a mapping used as a key", "text", "put braces around a value in quotes"
        key = node.value
        if key == "<<" and node.style is None:
            message = "`<<` merges nothing: it is a key like others in YAML 1.2"
            return (*at, key), message, "the keys themselves", "write the keys out"
        if _FORBIDDEN.search(key):
            return at, _FORBIDDEN_PROBLEM, "text", "write the character itself"
        if len(key) > bounded.KEY_CHARACTERS:
            return at, f"a key of {len(key):,} characters", f"at most {bounded.KEY_CHARACTERS}", "shorten it"
        if key in earlier:
            message = f"`{key}` is written twice; the first is on line {self.keys[(*at, key)].line + 1}"
            return (*at, key), message, "every key once", "remove one of the two"
        return None

    def _report(self, node: yaml.Node, at: KeyPath, message: str, expected: str, hint: str) -> None:
        self.problems.append(self.positions.problem_at(_span(node), message, expected, hint, dotted(at)))


def _span(node: yaml.Node) -> Span:
    start, end = node.start_mark, node.end_mark
    on_one_line = isinstance(node, yaml.ScalarNode) and start.line == end.line
    return Span(start.line, start.column, end.column - start.column if on_one_line else 1)


def _syntax_problem(error: yaml.YAMLError, text: str, positions: Positions) -> Problem:
    """Return PyYAML's error as a problem in plain words."""
    if isinstance(error, ReaderError):
        before = _LINE_BREAK.split(text[: error.position])
        message = f"a character that YAML does not allow (U+{ord(text[error.position]):04X})"
        return positions.problem_at(Span(len(before) - 1, len(before[-1])), message, "", "remove it")
    assert isinstance(error, yaml.MarkedYAMLError)
    assert error.problem_mark
    mark, context_mark = error.problem_mark, error.context_mark
    reason = ", ".join(filter(None, (error.context, error.problem))).replace(r"'\x00'", "the end of the file")
    if context_mark and context_mark.line != mark.line:
        reason += f" (it begins on line {context_mark.line + 1})"
    return positions.problem_at(Span(mark.line, mark.column), f"not YAML: {reason}", "", _SYNTAX_HINT)
