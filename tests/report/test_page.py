"""The page says what ``report.md`` says, and needs nothing from outside."""

import base64
import hashlib
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sparsebench.cli import report as verbs
from sparsebench.errors import LedgerError, UserError
from sparsebench.report import answer_table, build, build_brief
from sparsebench.report.page import page
from sparsebench.report.page.html import shaped
from tests.report.reading import whole
from tests.report.test_report import tables

VOID = {"meta", "img", "br", "hr", "mspace"}
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
SVG = """<?xml version="1.0"?>
<!-- made -->
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">
 <path d="M 0 0
L 9 9"/></svg>"""


class Page(HTMLParser):
    """An HTML document taken apart; an element that is not closed where it should be is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.main = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "main" in self.open and "math" not in self.open and "figcaption" not in self.open:
            self.main += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def shown(cell: str) -> str:
    """What of a Markdown cell a reader sees, without formulas."""
    cell = re.sub(r"\$[^$]+\$", "", cell.replace("\\|", "|"))
    return re.sub(r"\*\*|`|\*(?=\w)|(?<=\w)\*|\[([^]]+)\]\([^)]+\)", r"\1", cell).strip()


def pipe_tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if line.startswith("|"):
            found[-1].append([shown(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [[table[0], *table[2:]] for table in found if table]


def numbers(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", text))


@pytest.fixture(scope="module")
def written(calibrated_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Markdown and page on the same ledger, with a bitmap, and a bitmap that has a drawing beside it."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "score.png").write_bytes(PIXEL)
    (folder / "score.svg").write_text(SVG)
    (folder / "my own.png").write_bytes(PIXEL)
    *markdown, html = build(calibrated_ledger, folder / "out" / "report.md", folder, formats=("md", "html"))
    assert html == folder / "out" / "report.html"
    # The table of all variants is on the page alone.
    text, explored = re.subn(r'<h2 id="explore">.*?(?=<h2 )', "", html.read_text(), flags=re.DOTALL)
    text, listed = re.subn(r'<li><a href="#explore">Explore</a>\s*</li>\s*', "", text)
    assert explored == listed == 1
    # On the page a query is on the page.
    return re.sub(r"\(report-results\.md#", "(#", whole(markdown)), text


def test_nothing_is_fetched(written: tuple[str, str]) -> None:
    _, html = written
    found = Page(html)
    assert not found.all("link")
    assert all(str(image["src"]).startswith("data:") for image in found.all("img"))
    assert [tag for tag, attributes in found.tags if "src" in attributes and tag != "img"] == []
    assert not re.search(r"@import|url\(", html)
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv"))
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert html.count("&#39;sha256") == 0


def test_every_table_is_there_cell_by_cell(written: tuple[str, str]) -> None:
    markdown, html = written
    expected = pipe_tables(markdown)
    found = [[[cell.strip() for cell in row] for row in table] for table in Page(html).tables]
    assert len(expected) > 10
    for wanted, table in zip(expected, found, strict=True):
        # A formula in a cell is drawn, not spelled.
        bare = [[re.sub(r"^t$", "", cell) for cell in row] for row in table]
        assert bare == wanted


def test_every_number_is_there_as_often(written: tuple[str, str]) -> None:
    markdown, html = written
    text = re.sub(r"!\[[^]]*\]\([^)]*\)\n\n\*[^\n]*", "", markdown)
    text = re.sub(r"^\d\. ", "", text, flags=re.MULTILINE)
    code = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    prose = re.sub(r"\]\([^)]*\)", "]", re.sub(r"\$\$.+?\$\$|\$[^$]+\$", "", prose, flags=re.DOTALL))
    assert numbers(Page(html).main) == numbers(prose + code)


def test_pictures_are_inside_with_their_text(written: tuple[str, str]) -> None:
    markdown, html = written
    shown = re.findall(r"!\[([^]]+)\]\([^)]*\)\n\n\*([^*\n]+)\*", markdown)
    images = Page(html).all("img")
    assert [image["alt"] for image in images] == [subject for subject, _ in shown]
    assert len(shown) == 2
    assert html.count("<figcaption>") == 2
    kinds = {str(image["src"]).partition(";")[0] for image in images}
    assert kinds == {"data:image/svg+xml", "data:image/png"}
    drawing = base64.b64decode(next(str(i["src"]) for i in images if "svg" in str(i["src"])).partition(",")[2]).decode()
    assert drawing == '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><path d="M 0 0 L 9 9"/></svg>'
    for _, caption in shown:
        assert f"<figcaption>{escape(caption)}" in html
    assert re.search(r'<figcaption>[^<]+ <a href="#q\d+">Q\d+</a></figcaption>', html)


def test_each_image_becomes_a_figure_and_only_a_paragraph_its_caption() -> None:
    from markdown_it import MarkdownIt

    text = "![one](a.svg)\n\n![two](b.svg)\n\n*What two shows* [Q1](#q1)\n\n![three](c.svg)\n\n# *A heading*\n\n![four](d.svg)\n"
    found = [token for token in shaped(MarkdownIt().parse(text)) if token.type in ("figure", "heading_open")]
    captions = ["".join(child.content for child in token.children or []) for token in found]
    assert [token.content for token in found] == ["one", "two", "three", "", "four"]
    assert captions == ["", "What two shows Q1", "", "", ""]


def test_one_can_find_ones_way(written: tuple[str, str]) -> None:
    markdown, html = written
    found, prose = Page(html), re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    anchors = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    links = [str(link["href"]) for link in found.all("a") if str(link["href"]).startswith("#")]
    assert {link[1:] for link in links} <= set(anchors)
    headings = re.findall(r"^#{2,3} (?!Q\d)", prose, re.MULTILINE)
    assert html.split("</nav>")[0].count("<li>") == len(headings)
    assert found.all("html") == [{"lang": "en"}]
    scopes = Counter(heading["scope"] for heading in found.all("th"))
    assert set(scopes) == {"col", "row"} and scopes["row"] == sum(len(table) - 1 for table in found.tables)
    assert html.count("<math ") == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.DOTALL))
    assert not re.search(r"<m[ion][^>]*>\\", html)


def test_a_ledgers_text_is_shown_and_not_obeyed() -> None:
    html = page("| reason |\n| --- |\n| <script>alert(1)</script> costs $5 </table> |\n\n<img src=x>\n", {})
    assert "&lt;script&gt;alert(1)&lt;/script&gt; costs $5 &lt;/table&gt;" in html
    assert "&lt;img src=x&gt;" in html
    assert len(Page(html).all("script")) == 1


def test_no_file_is_read_that_is_none_of_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PIXEL)
    (tmp_path / "y.png").write_bytes(PIXEL)
    text = "![a](x.png)\n\n*a*\n\n![b](y.png)\n\n*b*\n\n![c](../x.png)\n\nwithin ![d](y.png) a line\n"
    images = Page(page(text, {"x.png": tmp_path / "x.png"})).all("img")
    assert [image["alt"] for image in images] == ["a"]


def test_two_headings_have_an_anchor_each_and_a_formula_that_cannot_be_read_stays() -> None:
    html = page("# T\n\n## Size & more\n\n### Size & more\n\n$a_b_c$", {})
    assert re.findall(r'<h\d id="(.+?)"', html) == ["t", "size--more", "size--more-1"]
    assert "<code>" in html


def verb(ledger: Path, *options: str) -> str:
    """What the verb prints."""
    app = typer.Typer()
    app.command()(verbs.report)
    return CliRunner().invoke(app, ["--ledger", str(ledger), *options], catch_exceptions=False).stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ("--format html --out a/r.md", "a/r.html\n"),
        ("--format md", "report.md\nreport-results.md\n"),
        ("--brief", "report.md\n"),
    ],
)
def test_formats(ledger: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, printed: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb(ledger, *options.split()) == printed
    assert set(tmp_path.rglob("*.*")) == {tmp_path / name for name in printed.split()}


def test_the_verb(ledger: Path, report: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert verb(ledger, "--out", "out/page.md") == "out/page.md\nout/page-results.md\nout/page.html\n"
    made = whole([tmp_path / "out" / name for name in ("page.md", "page-results.md")])
    assert made.replace("page-results.md", "report-results.md") == report


def test_a_brief_report_is_the_first_page_alone(ledger: Path, report: str, tmp_path: Path) -> None:
    (path,) = build_brief(ledger, tmp_path / "brief.md", tmp_path / "figures")
    text = path.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["1. The answer"]
    first = [line for line in report.split("## 2.")[0].splitlines() if line.startswith(("| ", "- **"))]
    assert first and [line for line in text.splitlines() if line.startswith(("| ", "- **"))] == first
    assert not re.search(r"\[Q\d+]|#q\d", text)
    with pytest.raises(UserError, match="Markdown"):
        verbs.report(tmp_path / "x.md", brief=True, formats=[verbs.Page.html], ledger=ledger)


def test_the_answer_is_printed_too(ledger: Path, report: str, tmp_path: Path) -> None:
    text = answer_table(ledger)
    rows = tables(report.split("## 2.")[0])[0][2:]
    assert {row[0] for row in rows} == {line.split()[0] for line in text.splitlines() if line.endswith("a request")}
    assert all(f"  {row[1]} " in text for row in rows)
    assert max(map(len, text.splitlines())) <= 110 and "**" not in text
    assert answer_table(ledger, ["sample"]) == text
    missing = tmp_path / "none.duckdb"
    for asked in (lambda: answer_table(missing), lambda: build(missing, tmp_path / "report.md", tmp_path)):
        with pytest.raises(LedgerError, match="no ledger"):
            asked()


@pytest.mark.parametrize(("out", "results"), [("r.html", None), ("r.md", "../x/r.md"), ("r.md", "r.html")])
def test_two_documents_of_one_name_are_refused(ledger: Path, tmp_path: Path, out: str, results: str | None) -> None:
    beside = tmp_path / "x" / results if results else None
    with pytest.raises(UserError, match=r"r\.(html|md): two documents"):
        build(ledger, tmp_path / "x" / out, tmp_path, formats=("md", "html"), results=beside)
    assert not list(tmp_path.rglob("r.*"))
