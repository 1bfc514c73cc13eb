"""A figure is a ``.sql`` file: leading ``-- key: value`` lines say how to draw what the query below them gives."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sparsebench import bounded
from sparsebench.errors import UserError
from sparsebench.escape import visible
from sparsebench.manifest.problems import did_you_mean

_LINE = re.compile(r"^--\s*([A-Za-z_]+)\s*:\s*(.*?)\s*$")

KEYS: Mapping[str, str] = {
    "title": "one sentence above the figure",
    "finding": "column whose first value, where there is one, stands above the figure in the title's place: what it shows",
    "about": "the question that the figure answers, for `figures --list`",
    "kind": "how it is drawn: line, curve, bars, scatter, forest or heatmap",
    "x": "column along the horizontal axis",
    "y": "column along the vertical axis (heatmap and forest: the rows)",
    "value": "heatmap: the column that is coloured",
    "low": "lower end of an interval around y",
    "high": "upper end of an interval around y",
    "xlow": "scatter, forest: lower end of an interval around x",
    "xhigh": "scatter, forest: upper end of an interval around x",
    "front": "scatter: the better end of y, high or low, or a column that is true where it is high and NULL at points that "
    "take no part (of x, less is better): points that no other beats are joined",
    "text": "column written at a point (scatter) or in a cell (heatmap), where it is not empty",
    "texts": "scatter: all points get theirs; front (default): with a front, those on it",
    "remark": "heatmap: column of longer words about a cell; they get a letter in the cell and stand below the figure",
    "range": "heatmap: lowest and highest value of the colour, `0 1`; without it, those found",
    "middle": "heatmap, instead of `range`: value of the palest colour, and the factor above and below it that has the darkest; "
    "`1 2.5` is a log scale from 0.4 to 2.5",
    "base": "bars: the part of y that is drawn pale",
    "series": "column that tells lines or bars apart",
    "place": "column of numbers: series with the same one look alike in all figures, where their colour is free; 0 to 4 are "
    "the blues of zeros, 5 to 7 the oranges of bits, from 8 on (where series without a place begin) come all others",
    "facet": "column that gives each of its values a panel",
    "row": "column whose values each begin a new row of panels",
    "apart": "line: column that is true for series whose points are not joined",
    "bound": "column that is true for series, or points of a scatter, in the background; they are grey, behind the others",
    "reference": "columns drawn as a level across the panel (bars: across their own bar), `COLUMN = label; …`",
    "xscale": "linear, log, category, or sparsity (a share that is drawn in percent, 90 to 99 spread out)",
    "yscale": "linear, log, or percent (a share)",
    "ymin": "number at which the vertical axis begins",
    "knee": "with a log axis: number above which its decades are packed together, on a grey ground",
    "xshare": "yes: all panels have one horizontal axis; no (default): each its own",
    "yshare": "yes: all panels have one vertical axis; no (default): each its own",
    "xlabel": "name and unit of the horizontal axis",
    "ylabel": "name and unit of the vertical axis or of the colour",
    "columns": "panels side by side, at most",
    "note": "small print below; may be repeated",
    "footnote": "column whose first value, where there is one, stands below the note: what is not drawn",
    "boundnote": "small print about what is grey, where anything is",
}
"""Every key of a header with what it means; `docs` and the error messages are made from it."""
KINDS: Mapping[str, tuple[str, ...]] = {
    "line": ("x", "y"),
    "curve": ("x", "y"),
    "bars": ("x", "y"),
    "scatter": ("x", "y"),
    "forest": ("x", "y"),
    "heatmap": ("x", "y", "value"),
}
"""Each kind of drawing (see ``draw.DRAWERS``) with the keys that it needs."""
LONGEST = 1000
"""The most characters of a header's value, and of a text that a query gives."""
SHIPPED, LOCAL = Path(__file__).parent / "shipped", Path("figures")
CHOICES = {
    "kind": tuple(KINDS),
    "xscale": ("linear", "log", "category", "sparsity"),
    "yscale": ("linear", "log", "percent"),
    "xshare": ("yes", "no"),
    "yshare": ("yes", "no"),
    "texts": ("all", "front"),
}
"""By key, the values that it may have."""
NUMBERS = {
    "range": (r"-?\d+(\.\d+)? -?\d+(\.\d+)?", "two numbers such as 0 1"),
    "middle": (
        r"(?=.*[1-9].* )\d+(\.\d+)? (?!1(\.0+)?$)[1-9]\d*(\.\d+)?",
        "a number above 0 and a factor above 1, such as 1 2.5",
    ),
    "ymin": (r"-?\d+(\.\d+)?", "a number such as 0"),
    "knee": (r"(?=.*[1-9])\d+(\.\d+)?", "a number above 0, such as 10000"),
    "columns": (r"[1-6]", "a number from 1 to 6"),
}
"""By key, the pattern that its values match, and the hint where one does not."""
ENDS = {"high": 1, "low": -1}
"""The ends of y that `front` may call better, with the sign that makes greater values better."""
NAMED_ROWS = ("heatmap", "forest")
"""Kinds whose vertical axis is a list of names."""
COLUMNS = (
    "finding", "x", "y", "value", "low", "high", "xlow", "xhigh", "text", "remark", "base", "series", "place", "facet",
    "row", "bound", "apart", "footnote",
)  # fmt: skip
"""Keys whose value is a column of the query; `front` may be one, and `reference` names several."""


@dataclass(frozen=True)
class FigureSpec:
    """One figure: the header's values by key, the line each stands on, and the SQL (the whole file)."""

    name: str
    path: Path
    values: Mapping[str, str]
    lines: Mapping[str, int]
    sql: str

    @property
    def title(self) -> str:
        """The sentence above the figure."""
        return self.values["title"]

    @property
    def shipped(self) -> bool:
        """Whether the figure is shipped with sparsebench."""
        return self.path.parent == SHIPPED

    @property
    def kind(self) -> str:
        """The kind of drawing, a key of ``KINDS``."""
        return self.values["kind"]

    def get(self, key: str, default: str = "") -> str:
        """Return the header's value of ``key``."""
        return self.values.get(key, default)

    @property
    def has_interval(self) -> bool:
        """Whether y has an interval."""
        return "low" in self.values and "high" in self.values

    @property
    def query(self) -> str:
        """The SQL without the header."""
        return re.sub(r"\A(--.*\n)+\s*", "", self.sql).strip().rstrip(";")

    @property
    def references(self) -> dict[str, str]:
        """Columns to draw as levels, each with its label."""
        pairs = (entry.partition("=") for entry in self.get("reference").split(";") if entry.strip())
        return {column.strip(): label.strip() or column.strip() for column, _, label in pairs}

    def with_finding(self, row: Mapping[str, object]) -> FigureSpec:
        """Return this figure with the finding in ``row``, escaped, as its title; unchanged where the row has none."""
        finding = row.get(self.get("finding"))
        return replace(self, values={**self.values, "title": visible(str(finding))}) if finding else self

    def check_columns(self, columns: tuple[str, ...]) -> None:
        """Raise UserError where the header names a column that the query does not give."""
        named = {self.values[key]: key for key in COLUMNS if key in self.values}
        if self.get("front") and self.get("front") not in ENDS:
            named[self.get("front")] = "front"
        for column, key in {**named, **dict.fromkeys(self.references, "reference")}.items():
            if column not in columns:
                raise UserError(
                    f"{self.path}, line {self.lines[key]}: `{key}` names {column!r}, which the query does not give",
                    f"it gives {', '.join(columns)}; {did_you_mean(column, columns)}".removesuffix("; "),
                )


def listing(local: Path = LOCAL, names: Container[str] | None = None) -> list[FigureSpec]:
    """Return the figures, or those in ``names``, sorted by name: the shipped ones, and those in ``local``, which
    override them.

    Raises UserError naming the file and line of a header that is wrong.
    """
    return [parse(path) for name, path in files(local).items() if names is None or name in names]


def files(local: Path) -> dict[str, Path]:
    """Return the files of the figures by name. Raises UserError for a link to a file outside of its folder."""
    paths = {path.stem: path for folder in (SHIPPED, local) for path in sorted(folder.glob("*.sql"))}
    for path in paths.values():
        bounded.refuse_special(path, UserError)
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{path}: a link to a file outside of {path.parent}", "copy the file into the folder")
    return dict(sorted(paths.items()))


def parse(path: Path) -> FigureSpec:
    """Read one figure. Raises UserError naming the file and the line of what is wrong."""
    try:
        text = bounded.read(path, UserError).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("--"):
            break
        match = _LINE.match(line)
        if not match:
            raise UserError(
                f"{path}, line {number}: not a `-- key: value` line: {line}", "comments go below the header"
            )
        key, value = match[1], match[2]
        problem, hint = _line_problem(key, value)
        if not problem and key in values:
            if key == "note":
                value = f"{values[key]}\n{value}"
            else:
                problem, hint = f"`{key}` again (first on line {lines[key]})", "remove one of them"
        if not problem and len(value) > LONGEST:
            problem, hint = f"`{key}` has more than {LONGEST:,} characters", "shorten it"
        if problem:
            raise UserError(f"{path}, line {number}: {problem}", hint)
        values[key] = value
        lines.setdefault(key, number)
    for key in ("title", "kind", *KINDS.get(values.get("kind", ""), ())):
        if key not in values:
            raise UserError(f"{path}: the header has no `{key}` ({KEYS[key]})", f"add a line `-- {key}: …` at the top")
    if "middle" in values and "range" in values:
        raise UserError(
            f"{path}, line {lines['middle']}: both `range` (line {lines['range']}) and `middle`", "remove one of them"
        )
    if "range" in values:
        low, high = map(float, values["range"].split())
        if low > high:
            raise UserError(
                f"{path}, line {lines['range']}: `range` is {values['range']!r}", "the lowest value comes first"
            )
    return FigureSpec(path.stem, path, values, lines, text)


def _line_problem(key: str, value: str) -> tuple[str, str]:
    """Say what is wrong with a line of a header, and what to do; two empty texts where nothing is."""
    if key not in KEYS:
        return f"unknown key `{key}`", f"known: {', '.join(KEYS)}; {did_you_mean(key, KEYS)}".removesuffix("; ")
    if not value:
        return f"`{key}` has no value", KEYS[key]
    if not value.isprintable():
        return f"`{key}` holds a control character", f"it is {value[:80]!r}: take it out"
    choices = CHOICES.get(key, (value,))
    if value not in choices:
        return f"`{key}` is {value!r}", f"choose from {', '.join(choices)}"
    if key in NUMBERS and not re.fullmatch(NUMBERS[key][0], value):
        return f"`{key}` is {value!r}", NUMBERS[key][1]
    return "", ""
