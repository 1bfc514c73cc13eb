"""Page one over the published records says no more than what they hold, computed here from the public views alone."""

from __future__ import annotations

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


def test_fewer_bits_of_weights_that_came_from_four_bits_are_told_as_that(
    page: str, ask: Ask, titles: Callable[[str], str]
) -> None:
    (line,) = bullets(page, "What favours whom.")
    (row,) = ask(
        "SELECT min(share) AS least, max(share) AS most FROM sizes WHERE format = 'source' AND weights = 'dequantized'"
    )
    least, most = f"{100 * row['least']:.0f}", f"{row['most']:.0%}"
    assert "GGUF" in line and f"4-bit files (*GGUF*), which have {least}–{most} of their bytes" in line
    assert f"4-bit files of {least} to {most}" in titles("kinds")


def zeros_are_told(ask: Ask, page: str) -> dict[str, list[dict[str, Any]]]:
    measured = alone(ask)
    for model, sweep in measured.items():
        near = [row for row in sweep if row["ratio"] <= 1.1][-1]
        following = sweep[sweep.index(near) + 1]
        (line,) = bullets(page, "Zeros cost more.")
        assert f"{near['share']:.0%} of {model}'s file" in line
        assert f"next measured: {following['sparsity']:.0%}, ×{following['ratio']:.2f}" in line
    return measured


def test_zeros_alone_are_told_as_they_were_measured_and_no_best_is_claimed(page: str, ask: Ask) -> None:
    assert set(zeros_are_told(ask, page)) == {"qwen2.5-coder-1.5b", "smollm2-135m"}


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


def test_a_speed_is_told_with_its_prompt_and_request_and_over_what(page: str, ask: Ask) -> None:
    told = {tuple(row[:2]): row[-3:] for row in rows(page)}
    for recipe in ("int8", "int4"):
        (known,) = ask(f"""
            SELECT any_value(speedup) FILTER (phase = 'decode') AS token, any_value(speedup) FILTER (phase = 'prefill') AS prompt,
                   any_value(speedup) FILTER (phase = 'generate') AS request
            FROM _headlines JOIN variants USING (variant_id, model)
            WHERE model LIKE 'qwen%' AND engine = 'sparse' AND recipe = '{recipe}' AND rivals > 1""")
        found = told["qwen2.5-coder-1.5b", recipe]
        assert [cell.rstrip("?") for cell in found] == [
            f"×{known[phase]:.2f}" for phase in ("token", "prompt", "request")
        ]


def test_what_fails_the_quality_gate_has_no_speed(page: str, ask: Ask) -> None:
    passing = {
        (row["model"], row["words"])
        for row in ask("SELECT g.model, words FROM gate g JOIN _recipes USING (variant_id) WHERE passes")
    }
    assert {(model, recipe.partition(" in groups")[0]) for model, recipe, *_ in rows(page)} <= passing


def test_one_label_has_one_calibration_and_one_dense_score(page: str, ask: Ask) -> None:
    twice = ask("""
        SELECT r.words, v.model FROM _recipes r JOIN ways USING (variant_id) JOIN variants v USING (variant_id)
        WHERE text IS NOT NULL AND v.weights <> 'random' GROUP BY ALL HAVING count(DISTINCT (text, inputs)) > 1""")
    assert twice == []
    assert len({tuple(row[:2]) for row in rows(page)}) == len(rows(page))


def test_what_the_best_method_keeps_is_drawn_as_it_was_measured(ask: Ask) -> None:
    drawn = [row for row in ask(parse(ROOT / "figures" / "retained.sql").sql) if row["sparsity"] > 0]
    best = {
        (row["model"], row["task"], round(row["sparsity"], 3)): row["retained"]
        for row in ask("""
            SELECT model, task, round(sparsity, 3) AS sparsity, max(retained) AS retained
            FROM vs_dense
            WHERE pattern = 'unstructured' AND method NOT LIKE 'random%'
              AND variant_id NOT IN (SELECT variant_id FROM steps WHERE step <> 'prune')
            GROUP BY ALL""")
    }
    for row in drawn:
        known = best[row["panel"].split(" (")[0], row["task"], round(row["sparsity"], 3)]
        assert row["retained"] <= max(known, -0.25) + 1e-9
    assert {row["task"] for row in drawn} == {task for _, task, _ in best if task not in ("perplexity", "mrpc_pair")}


def test_what_cannot_be_pruned_is_told_of_parameters_and_of_a_file_that_holds_them_twice(paper: str, ask: Ask) -> None:
    (row,) = ask("""
        SELECT any_value(unprunable_bytes / bytes) AS share FROM sizes
        WHERE model LIKE 'qwen%' AND method = 'dense' AND format = 'dense'""")
    (law,) = re.findall(r"\*\*Amdahl's law.*", paper)
    assert re.search(rf"15% in qwen2\.5-coder-1\.5b \({row['share']:.0%} of its file", law)


def test_times_of_training_are_those_of_the_records(paper: str, ask: Ask) -> None:
    told = {int(minutes) for minutes in re.findall(r"tokens, (\d+) minutes\)", paper)}
    measured = {round(60 * row["hours"]) for row in ask("SELECT DISTINCT hours FROM recovered WHERE hours IS NOT NULL")}
    assert told and told <= measured and " h)" not in paper


def test_where_the_answer_takes_longer_than_the_prompt_is_told_by_engine(paper: str, ask: Ask) -> None:
    found = ask("""
        SELECT name, list(prompt / decode / tokens) AS starts FROM (
            SELECT name, model, min(ms) FILTER (phase = 'decode') AS decode, min(ms) FILTER (phase = 'prefill') AS prompt,
                   regexp_extract(workload, 'p(\\d+)', 1)::INTEGER AS tokens
            FROM _dense_times WHERE workload LIKE 'b1 p128 %' AND (name, dtype) <> ('llama.cpp', 'bfloat16') OR model LIKE 'qwen%'
            GROUP BY name, model, machine, workload HAVING machine LIKE '%25.17%') GROUP BY name""")
    told = paper.split("once it is longer than ")[1].split(". Then count bytes")[0]
    for row in found:
        least, most = (f"{100 * share:.0f}" for share in (min(row["starts"]), max(row["starts"])))
        assert f"{most if least == most else f'{least}–{most}'}%" in told and row["name"] in told


def test_counts_are_of_one_set_of_benchmarks(paper: str, page: str, titles: Callable[[str], str], ask: Ask) -> None:
    (row,) = ask("""
        SELECT count(*) AS benchmarks, count(*) FILTER (chance) AS chance FROM (
            SELECT model, regexp_replace(task, '_per$', '') AS benchmark, bool_or(retained IS NOT NULL) AS chance FROM vs_dense
            WHERE pattern = 'unstructured' AND weights <> 'random' AND verdict <> 'invalid'
              AND task NOT IN (SELECT task FROM scores WHERE separable IS false)
              AND variant_id NOT IN (SELECT variant_id FROM steps WHERE step <> 'prune')
            GROUP BY ALL)""")
    zeros = bullets(page, "Zeros cost more.")[0]
    assert int(re.findall(r"on \d+ of (\d+) benchmarks", zeros)[0]) == row["benchmarks"]
    assert re.findall(r"at chance on \d+ of (\d+) benchmarks", titles("retained")) == [str(row["chance"])]
    assert set(re.findall(r"on \d+ of (\d+)", titles("score"))) == {str(row["chance"])}
