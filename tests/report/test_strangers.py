"""A bundle from somebody else: what its texts say is read in the report, the page and the exports, and does nothing in them."""

import base64
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import zstandard
from markdown_it import MarkdownIt

from sparsebench.errors import UserError
from sparsebench.ledger.query import export
from sparsebench.ledger.store import Ledger
from sparsebench.report import build
from tests.report.reading import whole
from tests.strangers import CANARY, HOSTILE, lines, records

CANARY_CODED = (base64.b64encode(CANARY)[:40], base64.b64encode(b"  " + CANARY)[4:40], CANARY.hex().encode())


def written(folder: Path, suffix: str) -> Path:
    """A report, in both forms, on a bundle whose texts end in ``suffix``, with a secret beside it."""
    theirs, out = folder / "theirs", folder / "out"
    for place in (folder, theirs, out, out / "figures"):
        place.mkdir(exist_ok=True)
    (theirs / "all.jsonl.zst").write_bytes(zstandard.compress(lines(suffix)))
    for secret in (place / f"secret.{end}" for place in (folder, theirs, out) for end in ("png", "svg")):
        secret.write_bytes(CANARY)
    Ledger(folder / "theirs.duckdb").rebuild([theirs])
    (out / "figures" / "score.png").write_bytes(b"a picture of ours")
    build(folder / "theirs.duckdb", out / "report.md", out / "figures", formats=("md", "html"))
    return out


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was made of a hostile bundle."""
    return written(tmp_path_factory.mktemp("hostile"), HOSTILE)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was made of the same bundle with texts that mean no harm."""
    return written(tmp_path_factory.mktemp("harmless"), " well")


def kinds(path: Path) -> Counter[str]:
    """How many tokens of each kind a report has for a reader that obeys HTML, as GitHub does; running text left out."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(path.read_text())
    every = [*tokens, *(child for token in tokens for child in token.children or [])]
    said = Counter(token.type for token in every)
    said.update(f"{t.type} {t.tag} {t.attrs.get('href', '')}" for t in every if t.type in ("heading_open", "link_open"))
    said.update(token.content for token in every if token.type.startswith("html"))
    for kind in ("text", "text_special", "code_inline", "softbreak"):
        said.pop(kind, None)
    return said


class Tags(HTMLParser):
    """The elements of a page, each with the attributes that could lead somewhere or do something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        leads = [
            f" {k}={v}"[:40] for k, v in attrs if (k in ("href", "src") and (v or "")[0] != "#") or k.startswith("on")
        ]
        if tag not in ("code", "br"):
            self.found[tag + "".join(leads)] += 1


def test_the_secret_is_in_no_output(hostile: Path) -> None:
    for to in ("csv", "parquet"):
        export(hostile.parent / "theirs.duckdb", to, hostile / to / "tables")
    outputs = [path for path in hostile.rglob("*") if path.is_file() and path.stem != "secret"]
    assert {path.suffix for path in outputs} >= {".md", ".html", ".csv", ".parquet"}
    for path in outputs:
        content = path.read_bytes()
        assert not [form for form in (CANARY, *CANARY_CODED) if form in content], path


@pytest.mark.long
def test_a_report_on_it_is_built_as_one_on_any_other(hostile: Path, harmless: Path) -> None:
    assert kinds(hostile / "report.md") == kinds(harmless / "report.md")
    assert "secret.png" in (hostile / "report.md").read_text(), "the texts must be in it"


def test_so_is_the_page(hostile: Path, harmless: Path) -> None:
    pages = [(folder / "report.html").read_text() for folder in (hostile, harmless)]
    tags = [Tags(text).found for text in pages]
    assert tags[0] == tags[1]
    scripts = [re.findall("<script>.*?</script>", text, re.DOTALL) for text in pages]
    assert scripts[0] == scripts[1] and len(scripts[0]) == 1
    assert "alert(1)" not in scripts[0][0] and "\x1b" not in pages[0]


def test_a_picture_that_is_a_link_to_elsewhere_is_refused(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CANARY)
    (tmp_path / "figures").mkdir()
    for name in ("score.png", "score.svg"):
        (tmp_path / "figures" / name).symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match=name):
            build(ledger, tmp_path / "report.md", tmp_path / "figures", formats=("html",))
        (tmp_path / "figures" / name).unlink()


@pytest.mark.parametrize("method", ["_calibration", "../8_measured"])
@pytest.mark.long
def test_the_name_of_a_method_is_no_template(tmp_path: Path, method: str) -> None:
    found = records("")
    for record in found:
        for variant in [record.get("variant"), *(cell["variant"] for cell in record.get("cells", []))]:
            if variant and variant["method"] == "random":
                variant["method"] = method
    Ledger(tmp_path / "x.duckdb").ingest(found)
    report = whole(build(tmp_path / "x.duckdb", tmp_path / "report.md", tmp_path / "figures"))
    assert "not installed here" in report
    assert report.count("To reproduce each number") == 1
