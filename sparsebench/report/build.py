"""Write a paper from the ledger, the results behind it, and one page of both: templates run queries to fill in."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import CodeType
from urllib.parse import quote

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket

from sparsebench.errors import UserError
from sparsebench.figures.spec import listing
from sparsebench.ledger import query
from sparsebench.ledger.statistics import Metric
from sparsebench.paths import check_writable, create
from sparsebench.report import words
from sparsebench.report.answer import QueryResult
from sparsebench.report.lookup import FIGURE_PREFIX, check_manifests, command_for, query_named
from sparsebench.report.page import page
from sparsebench.runtime.engines import engines
from sparsebench.sources.aliases import KNOWN
from sparsebench.steps.prune.registry import methods

REPORT_FOLDER = Path(__file__).parent


class FigurePlacer:
    """A folder's rendered figures, their titles and queries; each is placed once, in the paper or among the results."""

    def __init__(self, folder: Path, run: Callable[[str], query.Table], whole: bool) -> None:
        """``run`` asks the ledger; ``whole`` says whether the report covers all of it, as the pictures do.

        Raises UserError for a picture that is a link to a file outside.
        """
        for path in (*folder.glob("*.png"), *folder.glob("*.svg")):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{path}: a link to a file outside of {folder}", "copy the picture into the folder")
        self.folder, self.document_folder = folder.resolve(), folder
        self.unplaced = {path.stem: path for path in sorted(folder.glob("*.png")) if path.is_file()}
        self.files: dict[str, Path] = {}
        listed = listing(names=self.unplaced)
        self.specs = {spec.name: spec for spec in listed}
        self.run, self.whole = run, whole

    def title(self, name: str) -> words.LedgerText | str:
        """Return the sentence above the figure, for readers who cannot see it: its finding, if the report covers the whole
        ledger, else its title."""
        spec = self.specs.get(name)
        if self.whole and spec and spec.get("finding"):
            for row in self.run(spec.query).dicts()[:1]:
                if row.get(spec.get("finding")):
                    return words.LedgerText(spec.with_finding(row).title)
        return self.subject(name)

    def subject(self, name: str) -> words.LedgerText | str:
        """Return the figure's title whatever it finds. Only titles of shipped figures may hold Markdown."""
        spec = self.specs.get(name)
        return spec.title if spec and spec.shipped else words.LedgerText(spec.title if spec else name)

    def caption(self, name: str) -> words.LedgerText | str:
        """Return what the figure shows, in other words than the title above it."""
        spec = self.specs.get(name)
        about = spec.get("about") if spec else ""
        return words.LedgerText(about[:1].upper() + about[1:]) if about else self.subject(name)

    def place(self, name: str) -> str | None:
        """Return the link to a figure from ``document_folder``, and mark it as placed. None where there is no such picture,
        or where it was placed before."""
        if name not in self.unplaced:
            return None
        path = self.unplaced.pop(name)
        link = Path(os.path.relpath(self.folder / path.name, self.document_folder)).as_posix()
        self.files[link] = path
        return quote(link)


class Citations:
    """The queries behind a report, numbered in the order of first citation; the results end with their commands."""

    def __init__(self, manifests: Sequence[str], cites: bool = True) -> None:
        """``cites`` is false for a document that lists no queries to which a link could lead."""
        self.manifests, self.cites = manifests, cites
        self.numbers: dict[str, int] = {}
        self.results_link = ""

    def cite(self, name: str) -> str:
        """Return a link such as ``[Q7](results.md#q7)``, for a document that finds the results at ``results_link``."""
        if not self.cites:
            return ""
        number = self.numbers.setdefault(name, len(self.numbers) + 1)
        return f"[Q{number}]({self.results_link}#q{number})"

    def figure(self, name: str) -> str:
        """Return the link to the query behind a picture."""
        return self.cite(FIGURE_PREFIX + name)

    def command(self, name: str) -> str:
        """Return the command that prints every row of a query."""
        return command_for(name, self.manifests)


def build(
    ledger: Path,
    out: Path,
    figures: Path,
    manifests: Sequence[str] = (),
    formats: Sequence[str] = ("md",),
    results: Path | None = None,
) -> list[Path]:
    """Write the report on ``ledger``; return the paths written.

    Format ``md`` is the paper, ``out``, and the results behind it with their queries, ``results`` (default: beside it,
    ``NAME-results.md``); ``html`` is one page of both, beside ``out``. The same ledger and pictures give the same bytes.
    Markdown links to the pictures in ``figures`` by relative paths, and the page embeds them. ``manifests`` limits
    everything but the pictures, which cover the whole ledger, to these experiments (default: all).

    Raises LedgerError where there is no ledger, UserError for a manifest that it does not hold, and where two documents
    would be one file or one cannot be written.
    """
    results, html = results or out.with_name(f"{out.stem}-results.md"), out.with_suffix(".html")
    _check_writable([*([out, results] if "md" in formats else ()), *([html] if "html" in formats else ())])
    documents: dict[Path, str] = {}
    with query.session(ledger) as run:
        check_manifests(ledger, run, manifests)
        renderer = _Renderer(run, figures, manifests, cites=True)
        if "md" in formats:
            link = quote(Path(os.path.relpath(results.resolve(), out.resolve().parent)).as_posix())
            templates = {"paper.md.j2": out, "results.md.j2": results}
            (documents[out], documents[results]), _ = renderer.render(templates, {"paper.md.j2": link})
        if "html" in formats:
            # All templates make one page, so citations link within it.
            names = ("paper.md.j2", "explore.md.j2", "results.md.j2")
            texts, pictures = renderer.render(dict.fromkeys(names, out))
            documents[html] = page("\n".join(texts), pictures.files)
    return _write(documents)


def build_brief(ledger: Path, out: Path, figures: Path, manifests: Sequence[str] = ()) -> list[Path]:
    """Write the paper's first page alone, without links to queries, as Markdown; otherwise like ``build``."""
    _check_writable([out])
    with query.session(ledger) as run:
        check_manifests(ledger, run, manifests)
        (text,), _ = _Renderer(run, figures, manifests, cites=False).render({"brief.md.j2": out})
    return _write({out: text})


def _write(documents: Mapping[Path, str]) -> list[Path]:
    for path, content in documents.items():
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        with create(path) as file:
            file.write(content)
    return list(documents)


def _check_writable(documents: Sequence[Path]) -> None:
    """Raise UserError where a document cannot be written, or two of them would be one file."""
    for path in documents:
        check_writable(path, folder=False)
    for path, other in combinations(documents, 2):
        if path.resolve() == other.resolve():
            raise UserError(
                f"{path}: two documents of the report would be this file", "name another --out or --results"
            )


class _Renderer:
    """Fills templates with a ledger's answers, each of which is asked for once."""

    def __init__(self, run: Callable[[str], query.Table], figures: Path, manifests: Sequence[str], cites: bool) -> None:
        self.run, self.figures, self.manifests, self.cites = run, figures, manifests, cites
        self.answers: dict[str, QueryResult] = {}

    def ask(self, name: str) -> QueryResult:
        """Return the answer to a query, its texts escaped."""
        if name not in self.answers:
            rows = self.run(query_named(name, self.manifests)).dicts()
            escaped = tuple({key: words.escaped(value) for key, value in row.items()} for row in rows)
            self.answers[name] = QueryResult(name, escaped)
        return self.answers[name]

    def render(
        self, templates: Mapping[str, Path], results_links: Mapping[str, str] | None = None
    ) -> tuple[list[str], FigurePlacer]:
        """Return each template's text, with links from the folder that its path is in, and the pictures placed.

        ``results_links`` has the link to the results for the templates that stand in another file.
        """
        pictures = FigurePlacer(self.figures, self.run, whole=not self.manifests)
        citations = Citations(self.manifests, self.cites)
        environment = _environment(self.ask, pictures, citations)
        texts = []
        for name, path in templates.items():
            pictures.document_folder = path.resolve().parent
            citations.results_link = (results_links or {}).get(name, "")
            text = environment.get_template(name).render(manifests=words.escaped(list(self.manifests)))
            # No trailing spaces, and one blank line between blocks however the templates' branches fell.
            text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"
            texts.append(text)
        return texts, pictures


def skips_zeros(name: str) -> bool:
    """Whether an engine's kernels skip zeros; one that is not installed here is taken for a dense one."""
    return name in engines() and engines()[name].skips_zeros


class _Compiled(BytecodeCache):
    """Templates compiled once a process: it takes as long as to fill them, and each document has an environment."""

    def __init__(self) -> None:
        self.code: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self.code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self.code[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _Compiled()


def _environment(ask: Callable[[str], QueryResult], pictures: FigurePlacer, citations: Citations) -> Environment:
    templates = FileSystemLoader(REPORT_FOLDER / "templates")
    # Markdown, not HTML: the ledger's text escapes itself (`words.LedgerText`), and `answer.pipe_table` escapes our own `|`.
    environment = Environment(
        loader=templates, bytecode_cache=_COMPILED, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals |= {
        "ask": ask,
        "registry": methods(),
        "skips_zeros": skips_zeros,
        "licences": {alias: model_alias.licence for alias, model_alias in KNOWN.items()},
        "paragraphs": json.loads((REPORT_FOLDER / "paragraphs.json").read_text(encoding="utf-8")),
        "pictures": pictures,
        "citations": citations,
        "collapse": f"{words.collapse():,.0f}",
        "nicknames": words.NICKNAMES,
        "normal_change": words.normal_change,
    }
    environment.tests["skips_zeros"] = skips_zeros
    filter_names = (
        "amount", "called", "points", "listed", "versions", "raw", "spread", "seconds", "one_line", "paragraph",
    )  # fmt: skip
    filters = {name: getattr(words, name) for name in filter_names}
    environment.filters |= {**words.CELLS.special, **filters, "metric": lambda name: Metric.named(words.raw(name))}
    return environment
