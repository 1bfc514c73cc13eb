import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebench.errors import UserError
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.report import build
from sparsebench.report.build import REPORT_FOLDER
from sparsebench.report.lookup import MANIFESTS_PLACEHOLDER, query_named
from sparsebench.steps.prune import registry
from sparsebench.steps.prune.registry import Method, methods
from tests.ledger import samples
from tests.report.experiment import DREAM, SMALL, Write, faster
from tests.report.reading import whole

QUERIES = sorted((REPORT_FOLDER / "queries").glob("*.sql"))
SECTIONS = [
    "1. The answer", "2. Decide", "3. Five ideas", "4. The models", "5. Where the weights are", "6. The methods", "7. Quality",
    "8. Cost", "9. Why it is hard", "10. Limits", "All results", "The queries",
]  # fmt: skip


def tables(text: str) -> list[list[list[str]]]:
    """The pipe tables of a page, as rows of cells."""
    found: list[list[list[str]]] = [[]]
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


@pytest.mark.parametrize("name", ["report", "calibrated_report"])
def test_the_markdown_is_sound(request: pytest.FixtureRequest, name: str) -> None:
    report = request.getfixturevalue(name)
    assert re.findall(r"^## (.+)$", report, re.MULTILINE) == SECTIONS
    assert "\n\n\n" not in report
    assert not re.search(r"[ \t]$", report, re.MULTILINE)
    assert not re.search(r"\b(None|nan|Undefined)\b", report)
    prose = re.sub(r"```.*?```", "", report, flags=re.DOTALL)
    assert prose.count("$") % 2 == 0
    # A heading, a table or a list that follows a paragraph without a blank line is not rendered as one.
    assert not re.search(r"^[^\n|#-][^\n]*\n(\||#|- )", prose, re.MULTILINE)
    assert not re.search(r"^(\|[^\n]*|#[^\n]*)\n[^\n|]", prose, re.MULTILINE)
    found = tables(report)
    assert len(found) > 10
    assert all(len(table) > 2 and {len(row) for row in table} == {len(table[0])} for table in found)


def test_the_same_records_give_the_same_bytes(records: list[dict[str, Any]], report: str, tmp_path: Path) -> None:
    copy = tmp_path / "again.duckdb"
    Ledger(copy).ingest(reversed(records))
    assert whole(build(copy, tmp_path / "report.md", tmp_path / "figures")) == report


@pytest.mark.parametrize("which", ["", "calibrated_"])
def test_every_command_shown_prints_rows(request: pytest.FixtureRequest, which: str) -> None:
    ledger, report = (request.getfixturevalue(which + name) for name in ("ledger", "report"))
    shown = set(re.findall(r"`sparsebench sql --report (\S+)`", report))
    assert len(shown) > 8
    with query.session(ledger) as ask:
        assert all(ask(query_named(name)).rows for name in shown)


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_file_runs_says_what_it_is_and_is_used(ask: Callable[[str], query.Table], path: Path) -> None:
    sql = path.read_text()
    assert sql.startswith("-- ")
    ask(query_named(path.stem))
    templates = "".join(file.read_text() for file in REPORT_FOLDER.rglob("*.j2"))
    assert path.stem == "manifest_names" or f'ask("{path.stem}")' in templates
    # Or those of the query whose rows it reads.
    reads_another = "FROM {" in sql
    assert path.stem == "manifest_names" or sql.count(f" {MANIFESTS_PLACEHOLDER}") == (0 if reads_another else 1)


def test_numbers_are_the_ledgers(ask: Callable[[str], query.Table], report: str) -> None:
    columns = "v.score, s.low, s.high, v.difference, v.low, v.high, v.verdict"
    asked = ask(f"SELECT {columns} FROM vs_dense v JOIN scores s USING (manifest, record_id)")
    assert len(asked.rows) == 36
    for score, low, high, difference, least, most, verdict in asked.rows:
        line = f"{difference:+.3f} [{least:+.3f}, {most:+.3f}]".replace("-", "−")
        rows = [row for row in report.splitlines() if f"{score:.3f} [{low:.3f}, {high:.3f}]" in row and line in row]
        assert any(row.endswith(f"| {verdict} |") for row in rows)
    dense = "model = 'smol' AND method = 'dense' AND scope = 'prunable' AND scale = 'relative' AND threshold = 0.1"
    share = ask(f"SELECT far_share FROM structure WHERE {dense}").rows[0][0]
    assert f"smol (real): {100 * share:.1f}% far from zero; by block" in report


def test_runs_against_itself_are_told_with_what_they_varied_by(ask: Callable[[str], query.Table], report: str) -> None:
    (table,) = (table for table in tables(report) if "between processes" in table[0])
    rows = [dict(zip(table[0], row, strict=True)) for row in table[2:]]
    spread = {(row["processes"], row["between processes"], row["within a process"]) for row in rows}
    assert spread == {("4", "±1.0%", "±2.0%"), ("1", "–", "–")}
    # What a phase differs from itself by is the noise of its other rows.
    asked = "SELECT DISTINCT noise FROM latency WHERE ranks = 1 AND model = 'smol' AND phase <> 'load'"
    bounds = {row["bound"] for row in rows if row["model"] == "smol" and row["processes"] == "4"}
    assert bounds and bounds <= {f"±{100 * noise:.1f}%" for (noise,) in ask(asked).rows}


def test_the_largest_sparsity_without_a_detected_loss_is_found(ask: Callable[[str], query.Table], report: str) -> None:
    asked = ask(
        "SELECT model, task, method || '/' || granularity, sparsity, verdict = 'worse', s.low <= s.chance, loses_less "
        "FROM vs_dense JOIN scores s USING (manifest, record_id, model, task, method, granularity, sparsity) ORDER BY sparsity"
    )
    sweeps: dict[tuple[str, str, str], list[tuple[float, bool, bool, bool]]] = {}
    for model, task, label, *found in asked.rows:
        sweeps.setdefault((model, task, label), []).append(tuple(found))
    heads = ["method", "loss of a point ruled out up to", "no loss detected up to", "first loss detected at"]
    listed = [
        [row[0], row[1], *(row[table[0].index(head)] if head in table[0] else "–" for head in heads)]
        for table in tables(report)
        if table[0][:3] == ["model", "task", "n"] and heads[0] in table[0] and heads[2] in table[0]
        for row in table[2:]
    ]
    assert len(sweeps) == 9
    shown = [(key, sweep) for key, sweep in sweeps.items() if list(key) in [row[:3] for row in listed]]
    assert len(shown) >= 6
    for key, sweep in shown:
        told = [f"{sparsity:.0%}" for sparsity, *_ in sweep]
        lost = next((place for place, (_, worse, _, _) in enumerate(sweep) if worse), len(sweep))
        ends = next((place for place, (_, worse, chance, _) in enumerate(sweep) if worse or chance), len(sweep))
        unclear = next((place for place, (*_, less) in enumerate(sweep) if not less), len(sweep))
        row = next(row for row in listed if row[:3] == list(key))
        assert row[3:] == [["–", *told][unclear], ["–", *told][ends], [*told, "–"][lost]]


def test_the_change_in_norm_is_that_of_the_weights(ask: Callable[[str], query.Table]) -> None:
    cells = [cell for cell in samples.plan(samples.manifest()).cells if cell.stage == "structure"]
    kept = []
    for recipe, sparsity in (("dense", 0.0), ("magnitude/layer", 0.9)):
        (cell,) = (
            one
            for one in cells
            if one.variant.model == "mini" and one.variant.recipe.startswith(recipe)
            if one.variant.pruning_setting("sparsity") == sparsity
        )
        kept.append(np.array([tensor.rms for tensor in samples.structured(cell).tensors if tensor.prunable]))
    wanted = {"model": "mini", "label": "magnitude/layer", "sparsity": 0.9}
    (found,) = (row for row in ask(query_named("removed_norm")).dicts() if wanted.items() <= row.items())
    assert found["change"] == pytest.approx(np.sqrt(1 - (kept[1] / kept[0]) ** 2).mean())


def test_no_gain_is_said_where_there_is_none(report: str) -> None:
    assert "skips them**; none that pass the gate were timed there" in report
    assert report.count("**no gain**") == 4
    assert "it only wraps the model" in report


def test_a_speed_up_is_not_called_no_gain(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruined(variant: Any) -> bool:
        return bool(variant.pruning_setting("sparsity") > 0.8)

    faster(monkeypatch, lambda cell, phase: 1 if cell.variant.is_dense else 4 if ruined(cell.variant) else 2)
    monkeypatch.setattr(samples, "skill", lambda variant: 0.0 if ruined(variant) else 1.0 if variant.is_dense else 1.4)
    text = write()
    # Not the 4 times of what scores no more than a guess.
    answer = text.split("## 2.")[0]
    assert re.search(r"\| ×2\.\d\d \|", answer) and "×4." not in answer
    assert "**no gain**" not in text


def test_pictures_are_linked_relatively_and_only_if_they_exist(ledger: Path, tmp_path: Path) -> None:
    figures = tmp_path / "out" / "pictures"
    figures.mkdir(parents=True)
    (figures / "score.png").write_bytes(b"")
    (figures / "my own.png").write_bytes(b"")
    text = whole(build(ledger, tmp_path / "out" / "deep" / "report.md", figures))
    assert re.findall(r"!\[[^]]+]\((.+)\)", text) == ["../pictures/score.png", "../pictures/my%20own.png"]
    assert text.index("### Further pictures") < text.index("my%20own.png") < text.index("## The queries")


@pytest.mark.long
def test_two_manifests(tmp_path: Path) -> None:
    ledger = tmp_path / "two.duckdb"
    other = SMALL["models"][0] | {"name": "other", "source": "path:other"}
    small = SMALL | {"runtime": SMALL["runtime"] | {"ranks": [1]}}
    Ledger(ledger).ingest(samples.sample(samples.manifest(**small), "first"))
    Ledger(ledger).ingest(
        samples.sample(samples.manifest(**(small | {"models": [*SMALL["models"], other]})), "it's second")
    )
    both = whole(build(ledger, tmp_path / "both.md", tmp_path))
    one = whole(build(ledger, tmp_path / "one.md", tmp_path, ["it's second"]))
    # What is in both manifests is told once: but for the list of manifests, the tables are the same.
    assert tables(both)[:-1] == tables(one)[:-1]
    assert [row[0] for row in tables(both)[-1][2:]] == ["first", "it's second"]
    assert [row[0] for row in tables(one)[-1][2:]] == ["it's second"]
    assert "This report covers one experiment: it's second." in one
    shown = re.findall(r"`(sparsebench sql --report .+?)`", one)
    assert all(shlex.split(command)[-2:] == ["--manifest", "it's second"] for command in shown)
    assert query.run(ledger, query_named(shlex.split(shown[0])[3], ["it's second"])).rows
    first = whole(build(ledger, tmp_path / "first.md", tmp_path, ["first"]))
    assert "smol" in first
    assert "other |" not in first
    with pytest.raises(UserError, match="no manifest 'frist'") as caught:
        build(ledger, tmp_path / "none.md", tmp_path, ["frist"])
    assert caught.value.hint == "did you mean `first`?"


@pytest.mark.parametrize(
    "gone",
    [
        {"structure": "`sparsebench inspect SOURCE`", "latency": "`sparsebench measure SOURCE --against SOURCE`"},
        {"storage": "`storage:` section that lists `packed`", "benchmarks": "`sparsebench score SOURCE --task TASK`"},
    ],
    ids=lambda gone: " and ".join(gone),
)
def test_a_stage_without_rows_is_said_to_be_missing_and_failures_have_their_reasons(
    write: Write, gone: dict[str, str]
) -> None:
    def keep(record: dict[str, Any]) -> bool:
        if record.get("stage") == "memory":
            record.update(status="unsupported", reason="AutoTP | cannot shard it", result=None)
        return record.get("stage") not in gone

    text = write(keep)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    assert text.count("Not measured") == len(gone) + 1, "and memory, which failed"
    assert all(command in text for command in gone.values())
    assert not re.search(r"\b(None|nan)\b", text)
    assert "AutoTP &#124; cannot shard it" in text
    assert "the ledger does not hold peak memory" in text


def test_nothing_but_a_plan(write: Write) -> None:
    text = write(lambda record: record.get("kind") == "plan")
    assert "Nothing has been measured yet that could be summed up" in text
    assert text.count("Not measured") >= 6
    assert "| sample | 23 | 0 | 0 | 0 | 0 | 23 |" in text


@pytest.mark.long
def test_random_weights_are_a_rehearsal_and_marked_in_the_table_that_they_share(write: Write) -> None:
    text = write(models=[*SMALL["models"], DREAM])
    assert "**A rehearsal** has the true shapes of a model and random weights" in text
    with_dream = [table for table in tables(text) if any("dream" in cell for row in table for cell in row)]
    assert with_dream
    shared = [table for table in with_dream if any("smol" in cell for row in table for cell in row)]
    assert len(shared) == 1, "files and DeepSpeed's times, which random weights have as well"
    assert all("(random)" in row[0] for row in shared[0] if "dream" in row[0])
    for line in text.splitlines():
        if "dream" in line and not line.startswith("|"):
            assert "ehears" in line, line
    assert "dream" not in text.split("## 5.")[1].split("## 6.")[0]
    assert "dream" not in text.split("## 7.")[1].split("## 8.")[0]


def test_what_is_not_in_the_ledger_is_not_explained(report: str) -> None:
    methods = report.split("## 6.")[1].split("## 7.")[0]
    assert re.findall(r"^### (.+)$", methods, re.MULTILINE) == ["Random", "Magnitude"]
    for word in ("Which method", "at equal sparsity:", "paired t test", "+owl", "Calibration:"):
        assert word not in re.sub(r"```.*?```", "", report, flags=re.DOTALL)


@pytest.mark.parametrize("installed", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_method_without_a_page_of_its_own_is_named_all_the_same(
    write: Write, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    table = methods() | {"novel": Method("novel", score="somewhere:score", summary="removes what is new")}
    monkeypatch.setattr(registry, "methods", lambda: table)
    if installed:
        monkeypatch.setattr(sys.modules["sparsebench.report.build"], "methods", lambda: table)
    text = write(variants=[{"prune": "novel", "sparsity": [0.5]}])
    assert "### Novel" in text
    assert ("Removes what is new." in text) == installed
    assert ("not installed here" in text) != installed
    assert "### Random" not in text
    assert "- novel: layer at 50%." in text


def test_what_is_cited_is_among_the_queries_once(report: str) -> None:
    cited = {int(number) for number in re.findall(r"\[Q(\d+)]\((?:report-results\.md)?#q\1\)", report)}
    answered = [int(number) for number in re.findall(r"^### Q(\d+)$", report, re.MULTILINE)]
    assert answered == sorted(set(answered)) == list(range(1, len(answered) + 1))
    assert cited == set(answered)


def test_a_task_that_does_not_notice_is_called_blind(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0 if variant.is_dense else 2.5)
    text = write()
    listed = {
        tuple(row[table[0].index(head)] for head in ("no loss detected up to", "better at"))
        for table in tables(text)
        if "better at" in table[0]
        for row in table[2:]
    }
    assert listed == {("90%", "50% + 90%")}
    assert "piqa does not notice pruning" in text
    assert re.search(r"no loss .+ even at 90% with .+ score is \*better\* than dense at 50% and 90%", text)
