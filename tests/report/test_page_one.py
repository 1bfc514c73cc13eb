"""Page one over the published records says no more than what they hold, computed here from the public views alone."""

import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsebench.figures.spec import parse
from sparsebench.ledger import query
from sparsebench.report import build
from sparsebench.report.words import called

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
Ask = Callable[[str], list[dict[str, Any]]]


def ingested(path: Path, *names: str) -> Path:
    files = [ROOT / "ledger" / "published" / f"{name}.jsonl.zst" for name in names]
    command = [sys.executable, "-m", "sparsebench", "ingest", *files, "--ledger", path]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ledger behind the published report."""
    reported = re.findall(r"^REPORTED = (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    return ingested(tmp_path_factory.mktemp("published") / "published.duckdb", *reported)


@pytest.fixture(scope="module")
def ask(published: Path) -> Iterator[Ask]:
    with query.session(published) as session:
        yield lambda sql: session(sql).dicts()


@pytest.fixture(scope="module")
def paper(published: Path) -> str:
    """The paper over the published ledger, whose first section is page one."""
    out = published.parent / "report.md"
    build(published, out, ROOT / "figures")
    return out.read_text(encoding="utf-8")


def results(published: Path) -> str:
    """The results behind the paper, which its fixture has written."""
    return (published.parent / "report-results.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(paper: str) -> str:
    return first(paper)


@pytest.fixture(scope="module")
def titles(ask: Ask) -> Callable[[str], str]:
    return lambda name: title(ask, name)


def first(paper: str) -> str:
    return paper.split("## 1. The answer")[1].split("\n## 2.")[0]


def title(ask: Ask, name: str) -> str:
    return str(ask(parse(ROOT / "figures" / f"{name}.sql").sql)[0]["finding"])


def bullets(page: str, begins: str) -> list[str]:
    """The lines of the bullet that begins so: itself, then those below it."""
    (found,) = re.findall(rf"^- \*\*{begins}\*\*.*(?:\n  - .*)*", page, re.MULTILINE)
    return found.split("\n")


def rows(page: str) -> list[list[str]]:
    """The rows of page one's table: model, variant, loss, ruled out, file, speed."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")][2:]


def alone(ask: Ask) -> dict[str, list[dict[str, Any]]]:
    """By model and rising sparsity: the lowest perplexity over dense by pruning alone, and the mean packed file."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ask("""
        WITH pruned AS (
            SELECT variant_id FROM steps GROUP BY variant_id HAVING bool_and(step = 'prune') AND NOT bool_or(name = 'random')
        ), files AS (
            SELECT model, sparsity, avg(share) AS share
            FROM (SELECT DISTINCT variant_id, model, sparsity, share FROM sizes
                  WHERE format = 'packed' AND pattern = 'unstructured'
                    AND variant_id IN (SELECT variant_id FROM steps GROUP BY ALL HAVING bool_and(step = 'prune')))
            GROUP BY ALL
        )
        SELECT d.model, d.sparsity, min(ratio) AS ratio, arg_min(pairs, ratio) AS n, any_value(share) AS share
        FROM vs_dense d JOIN pruned USING (variant_id) JOIN files f ON f.model = d.model AND f.sparsity = d.sparsity
        WHERE ratio IS NOT NULL AND pattern = 'unstructured' AND weights <> 'random'
        GROUP BY ALL ORDER BY d.model, d.sparsity"""):
        found[row["model"]].append(row)
    return found


def zeros_are_told(ask: Ask, page: str) -> dict[str, list[dict[str, Any]]]:
    measured = alone(ask)
    for model, sweep in measured.items():
        near = [row for row in sweep if row["ratio"] <= 1.1][-1]
        following = sweep[sweep.index(near) + 1]
        (line,) = bullets(page, "Zeros cost more.")
        after = f"{near['share']:.0%} of the file; the best at {following['sparsity']:.0%}: ×{following['ratio']:.2f}"
        assert re.search(rf"{near['sparsity']:.0%}( \(text \w+\))? for {called(model)} \({re.escape(after)}\)", line)
    return measured


def test_a_record_on_other_windows_counts_for_what_zeros_alone_leave(published: Path, tmp_path: Path) -> None:
    """`docs/shapes.md` has SparseGPT at 20%, on 8 windows: where its record is in the ledger, the page says so."""
    more, out = tmp_path / "more.duckdb", tmp_path / "report.md"
    shutil.copy(published, more)
    ingested(more, "shapes")
    build(more, out, ROOT / "figures")
    with query.session(more) as session:
        measured = zeros_are_told(lambda sql: session(sql).dicts(), first(out.read_text(encoding="utf-8")))
    (twenty,) = (row for row in measured["smollm2-135m"] if row["sparsity"] == 0.2)
    assert twenty["ratio"] == pytest.approx(1.03, abs=0.005) and twenty["share"] == pytest.approx(0.89, abs=0.005)


def test_one_label_has_one_calibration_and_one_dense_score(page: str, ask: Ask) -> None:
    twice = ask("""
        SELECT r.words, v.model FROM _recipes r JOIN ways USING (variant_id) JOIN variants v USING (variant_id)
        WHERE text IS NOT NULL AND v.weights <> 'random' GROUP BY ALL HAVING count(DISTINCT (text, inputs)) > 1""")
    assert twice == []
    assert len({tuple(row[:2]) for row in rows(page)}) == len(rows(page))


def test_counts_are_of_one_set_of_benchmarks(paper: str, page: str, titles: Callable[[str], str], ask: Ask) -> None:
    (row,) = ask("""
        SELECT count(*) AS benchmarks, count(*) FILTER (chance) AS chance FROM (
            SELECT model, regexp_replace(task, '_per$', '') AS benchmark, bool_or(retained IS NOT NULL) AS chance FROM vs_dense
            WHERE pattern = 'unstructured' AND weights <> 'random' AND verdict <> 'invalid'
              AND task NOT IN (SELECT task FROM scores WHERE separable IS false)
              AND variant_id NOT IN (SELECT variant_id FROM steps WHERE step <> 'prune')
            GROUP BY ALL)""")
    zeros = bullets(page, "Zeros cost more.")[0]
    assert int(re.findall(r"on (?:\d+ of|all) (\d+) benchmarks", zeros)[0]) == row["benchmarks"]
    assert re.findall(r"from chance on \d+ of (\d+) benchmarks", titles("retained")) == [str(row["chance"])]
    assert set(re.findall(r"on \d+ of (\d+)", titles("score"))) == {str(row["chance"])}


def test_who_has_llama_cpp_reads_gains_over_its_own_dense(paper: str, ask: Ask) -> None:
    (row,) = re.findall(r"^\| llama\.cpp in use \| (.*)$", paper, re.MULTILINE)
    told = re.findall(r"×([\d.]+) \(([^)]+)\)", row)
    best = ask("""
        SELECT model, max(speedup) AS speedup
        FROM latency JOIN gate USING (variant_id, model)
        WHERE engine = 'llamacpp' AND phase IN ('generate', 'forward') AND verdict = 'faster' AND passes
          AND workload LIKE 'b1 p128 %'
        GROUP BY model""")
    assert told
    assert sorted(told) == sorted((f"{one['speedup']:.1f}", str(called(one["model"]))) for one in best)


def test_an_engine_gains_and_loses_in_different_phases(published: Path, paper: str) -> None:
    """Both of zeros: what fewer bits gain is told elsewhere."""
    told = re.findall(
        r"^- Measured: the engine .* In \S+ (\w+) at (\S+) is .*, and (\w+) at (\S+) ", results(published), re.MULTILINE
    )
    assert told
    for gaining, gained, losing, lost in told:
        assert gaining != losing
        assert "0%" not in (gained, lost)


def test_a_report_over_all_that_is_published_is_written(tmp_path: Path) -> None:
    """Of models whose structure was not assessed there is no number of parameters."""
    names = [path.name.removesuffix(".jsonl.zst") for path in (ROOT / "ledger" / "published").glob("*.jsonl.zst")]
    build(ingested(tmp_path / "all.duckdb", *names), tmp_path / "report.md", tmp_path)
    assert (tmp_path / "report.md").stat().st_size > 10_000
