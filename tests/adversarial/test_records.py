"""Records of strangers: forged and damaged ones are refused by name, others never change one's own numbers silently."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsebench import provenance, records
from sparsebench.benchmarks import OwnData
from sparsebench.environment import environment_id
from sparsebench.errors import RecordError
from sparsebench.ledger import query
from sparsebench.ledger.incoming import unbundle
from sparsebench.ledger.store import Ledger
from sparsebench.manifest.names import LM_EVAL
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.report import build
from sparsebench.run.select import decisions, verified
from tests.adversarial import forgeries
from tests.adversarial.forgeries import Forgery, Record, text_of
from tests.adversarial.watch import cheap
from tests.command import call
from tests.ledger import samples
from tests.ledger.made import elsewhere, of, outcomes
from tests.plan.planning import RANDOM
from tests.sampling import a_third

STRANGER, OTHER = "feed" * 4, "beef" * 4
CASES = list(forgeries.forged())


@pytest.fixture(scope="module")
def real() -> dict[str, Record]:
    """A published record of each kind."""
    return forgeries.real()


@pytest.fixture(scope="module")
def taken(real: dict[str, Record], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ledger of them, in which no forgery may leave a trace."""
    path = tmp_path_factory.mktemp("taken") / "l.duckdb"
    assert Ledger(path).verify_and_add([("real", record) for record in real.values()], None) == len(real)
    before = query.run(path, "FROM base.records ORDER BY ALL"), query.run(path, "FROM results ORDER BY ALL")
    yield path
    assert before == (query.run(path, "FROM base.records ORDER BY ALL"), query.run(path, "FROM results ORDER BY ALL"))


@pytest.mark.parametrize(("kind", "forgery"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_forged_record_is_refused(
    kind: str, forgery: Forgery, real: dict[str, Record], taken: Path, tmp_path: Path
) -> None:
    names = list(real)
    other = real[names[(names.index(kind) + 1) % len(names)]]
    if other["stage"] == real[kind]["stage"]:
        other = real["structure" if kind != "structure" else "memory"]
    path = tmp_path / "forged.done.json"
    path.write_bytes(forgery(copy.deepcopy(real[kind]), other).encode(errors="surrogateescape"))
    wrong: list[RecordError] = []
    with cheap():
        assert Ledger(taken).rebuild([path], wrong.append) == 0
    with cheap():
        assert unbundle(path, tmp_path / "records", wrong.append) == (0, 0)
    assert [str(path) in str(error) for error in wrong] == [True, True]
    assert not list(tmp_path.rglob("*escaped*")) and not (tmp_path / "records").exists()


class Workspace:
    """A folder with a ledger, whose own records say one thing, and strangers who say another."""

    def __init__(self, home: Path) -> None:
        self.home, self.ledger, self.number = home, home / "l.duckdb", 0
        self.own = provenance.origin(home, create_it=True)

    def made_here(self, *found: Record) -> list[Record]:
        """Write records of this workspace into its folder."""
        made = [provenance.sealed(record | {"origin": self.own}) for record in found]
        for record in made:
            name = f"plan-{record['manifest']}" if "kind" in record else f"{record['key']}.{record['status']}"
            (self.home / "records").mkdir(exist_ok=True)
            (self.home / "records" / f"{name}.json").write_text(text_of(record))
        return made

    def given(self, *found: Record, origin: str = STRANGER) -> Path:
        """A stranger's folder of records."""
        self.number += 1
        folder = self.home / f"theirs{self.number}"
        folder.mkdir()
        for number, record in enumerate(found):
            (folder / f"{number:03}.json").write_text(text_of(record | {"origin": origin}))
        return folder

    def take(self, *folders: Path) -> None:
        """Ingest folders, the first first; none may hold what is refused."""
        for folder in folders:
            assert Ledger(self.ledger).rebuild([folder])

    def ask(self, sql: str) -> tuple[tuple[Any, ...], ...]:
        """The rows of a query."""
        return query.run(self.ledger, sql).rows


@pytest.fixture
def here(tmp_path: Path) -> Workspace:
    """One without any record."""
    return Workspace(tmp_path)


@pytest.fixture
def score(found: list[Record]) -> Record:
    """A score of half of 40 documents."""
    record = copy.deepcopy(of(found, stage="benchmarks", model="smol", method="magnitude", sparsity=0.5)[0])
    return with_score(record, [1, 0] * 20)


found = pytest.fixture(scope="session", name="found")(lambda: samples.sample(samples.small()))


def with_score(record: Record, values: list[int], **more: Any) -> Record:
    """The same record with these outcomes and their score."""
    made: Record = outcomes(values)
    made["stderr"] = (sum((value - made["score"]) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5
    record = record | {"settings": record["settings"] | {"limit": None, "task": "piqa"}}
    return copy.deepcopy(record) | {"result": made} | more


def on_another_machine(record: Record) -> Record:
    """The same record of another machine, some days later."""
    moved = elsewhere(record, "other", days=9)
    return moved | {"environment": moved["environment"] | {"id": environment_id(moved["environment"])}}


FORGED: dict[str, Callable[[Record], Record]] = {
    "a later date": lambda record: record | {"started_at": "2036-01-01T00:00:00.000+00:00"},
    "an earlier date": lambda record: record | {"started_at": "2016-01-01T00:00:00.000+00:00"},
    "the same date": lambda record: record,
    "another machine": lambda record: on_another_machine(record),
    "other weights": lambda record: record | {"content": "other"},
    "the manifest's name": lambda record: record | {"manifest": "sample"},
}


@pytest.mark.parametrize("first", ["own", "theirs"])
@pytest.mark.parametrize("forgery", a_third(FORGED))
def test_ones_own_record_counts_whichever_came_first(here: Workspace, score: Record, forgery: str, first: str) -> None:
    (own,) = here.made_here(score | {"content": "own"})
    theirs = here.given(with_score(FORGED[forgery](own), [1] * 39 + [0]))
    folders = [here.home / "records", theirs]
    here.take(*(folders if first == "own" else reversed(folders)))
    assert here.ask("SELECT score, n FROM scores") == ((0.5, 40),)
    asked = "SELECT counts LIKE 'acc 0.5 %', says LIKE 'acc 0.975 %', counts_own, counts_origin, origin FROM conflicts"
    assert here.ask(asked) == ((True, True, True, here.own, STRANGER),)
    before = here.ask("FROM base.records")
    assert Ledger(here.ledger).rebuild(folders) and here.ask("FROM base.records") == before


def test_a_stranger_who_gives_this_workspace_as_origin_is_a_stranger(here: Workspace, score: Record) -> None:
    here.made_here(score)
    here.take(here.home / "records", here.given(with_score(score, [1] * 40), origin=here.own))
    assert here.ask("SELECT score FROM scores") == ((0.5,),)
    assert len(here.ask("FROM conflicts")) == 1


def test_ones_own_records_say_what_variants_and_plans_are(here: Workspace, found: list[Record]) -> None:
    plan, cells = found[0], of(found, model="smol")
    forged = json.loads(json.dumps([plan, *cells]))
    for cell in [*forged[0]["cells"], *forged[1:]]:
        cell["variant"] |= {"method": "wanda", "recipe": "wanda", "steps": [], "sparsity": 0.1}
    forged[0] |= {"written_at": "2036-01-01T00:00:00.000+00:00"}
    for cell in forged[0]["cells"]:
        cell |= {"label": "theirs", "variant": forged[0]["cells"][0]["variant"]}
    here.made_here(plan, *cells)
    here.take(here.given(*forged), here.home / "records")
    alone = Workspace(here.home / "alone")
    alone.home.mkdir(exist_ok=True)
    alone.made_here(plan, *cells)
    alone.take(alone.home / "records")
    for asked in ("FROM results ORDER BY ALL", "SELECT * FROM cells ORDER BY ALL", "FROM steps ORDER BY ALL"):
        assert here.ask(asked) == alone.ask(asked)


def test_times_of_one_place_are_ones_own(here: Workspace, found: list[Record]) -> None:
    time_ = of(found, stage="latency", model="smol", method="magnitude", sparsity=0.5)[0]
    forged = copy.deepcopy(time_) | {"started_at": "2036-01-01T00:00:00.000+00:00"}
    for phase in forged["result"]["phases"]:
        phase["median_s"] /= 10
    here.made_here(time_)
    here.take(here.given(forged), here.home / "records")
    here.take(here.given(forged | {"started_at": "2036-01-02T00:00:00.000+00:00"}, origin=OTHER))
    medians = [1000 * phase["median_s"] for phase in time_["result"]["phases"] if phase["side"] == "variant"]
    assert sorted(ms for (ms,) in here.ask("SELECT ms FROM latency")) == pytest.approx(sorted(medians))
    assert here.ask("SELECT DISTINCT counts_own FROM conflicts") == ((True,),)


def test_among_strangers_the_last_record_of_the_first_maker_counts(here: Workspace, score: Record) -> None:
    day = "2026-02-0{}T00:00:00.000+00:00".format
    first = here.given(with_score(score, [1] * 10 + [0] * 30, started_at=day(5)))
    second = here.given(with_score(score, [1] * 20 + [0] * 20, started_at=day(9)), origin=OTHER)
    again = here.given(with_score(score, [1] * 30 + [0] * 10, started_at=day(4)))
    for folder, expected in ((first, 0.25), (second, 0.25), (again, 0.75)):
        here.take(folder)
        assert here.ask("SELECT score FROM scores") == ((expected,),)
    assert sorted(here.ask("SELECT origin, counts_origin FROM conflicts")) == [(OTHER, STRANGER), (STRANGER, STRANGER)]


def test_own_scores_are_compared_with_own_dense_scores(here: Workspace, found: list[Record], score: Record) -> None:
    dense = of(found, stage="benchmarks", model="smol", method="dense")[0]
    dense = with_score(dense, [1] * 30 + [0] * 10)
    here.made_here(on_another_machine(dense), score)
    here.take(here.home / "records", here.given(with_score(dense, [0] * 40), with_score(score, [1, 0, 0, 0] * 10)))
    assert here.ask("SELECT score, dense_score FROM vs_dense") == ((0.5, 0.75),)


def test_a_record_of_other_settings_is_no_record_of_a_cell(here: Workspace, found: list[Record], score: Record) -> None:
    cell = of(found, stage="benchmarks", model="smol", method="magnitude", sparsity=0.5)[0]
    here.made_here(found[0])
    here.take(here.home / "records", here.given(with_score(cell, [1] * 40)))
    asked = f"SELECT status FROM cells WHERE cell_id = '{cell['cell_id']}'"
    assert here.ask(asked) == (("missing",),)
    here.made_here(cell)
    here.take(here.home / "records")
    assert here.ask(asked) == (("done",),)
    assert here.ask("SELECT says LIKE 'other settings: %' FROM conflicts") == ((True,),)


@pytest.mark.parametrize("unbundled", [False, True])
def test_a_record_without_an_origin_is_nobodys_wherever_it_lies(
    unbundled: bool, here: Workspace, found: list[Record]
) -> None:
    loose = {key: value for key, value in found[-1].items() if key not in ("checksum", "origin")}
    (here.home / "records").mkdir()
    path = here.home / ("old.json" if unbundled else f"records/{loose['key']}.done.json")
    path.write_text(json.dumps(loose))
    assert not unbundled or unbundle(path, here.home / "records") == (1, 0)
    here.take(here.home / "records")
    assert here.ask("SELECT own, origin FROM base.records") == ((False, ""),)


def test_ingest_names_what_it_leaves_out_and_what_conflicts(here: Workspace, score: Record) -> None:
    here.made_here(score)
    theirs = here.given(with_score(score, [1] * 40), {**score, "result": score["result"] | {"score": 0.9}})
    done = call("ingest", here.home / "records", theirs, "--ledger", here.ledger)
    assert done.returncode == 1
    assert f"left out: {theirs}/001.json" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("conflict: ")]
    assert "acc 0.5 on 40" in line and "made here" in line and STRANGER in line


def test_the_report_lists_conflicts(here: Workspace, found: list[Record], score: Record) -> None:
    here.made_here(found[0], score)
    here.take(here.home / "records")
    paths = {"figures": here.home / "figures"}
    (paper, results) = build(here.ledger, here.home / "before.md", **paths)
    assert "disagree" not in paper.read_text() and STRANGER not in results.read_text()
    here.take(here.given(with_score(score, [1] * 40)))
    (paper, results) = build(here.ledger, here.home / "after.md", **paths)
    assert STRANGER in results.read_text() and "disagree" in paper.read_text()


def test_a_limit_is_one_of_each_part_of_a_group(real: dict[str, Record]) -> None:
    group = {"settings": real["acc"]["settings"] | {"task": "mmlu", "limit": 2}}
    for documents, taken in ((2 * 57, True), (2 * 57 + 1, False)):
        result = real["acc"]["result"] | {"task": "mmlu", "n": documents, "limited": True}
        problem = provenance.record_problem(real["acc"] | group | {"result": result})
        assert (problem is None) == taken, problem
    folder = OwnData(LM_EVAL, "c").settings()
    result = real["acc"]["result"] | {"task": "quizzes", "n": 4, "limited": True}
    settings = real["acc"]["settings"] | {"task": "quizzes", "limit": 2, "own": folder}
    assert provenance.record_problem(real["acc"] | {"settings": settings, "result": result}) is None


def test_unbundle_takes_no_record_under_another_cells_id(here: Workspace, found: list[Record]) -> None:
    one, other = of(found, stage="storage", model="smol")[:2]
    names = {name: other[name] for name in ("cell_id", "key")}
    bundled = here.home / "b.jsonl.zst"
    records.bundle(here.given(one | names, other), bundled)
    done = call("unbundle", bundled, here.home / "records")
    assert done.returncode == 1 and "left out: " in done.stderr and other["cell_id"] in done.stderr
    assert records.read_cell(here.home / "records", other["key"], "done")["variant"] == other["variant"]


DAMAGE: dict[str, Callable[[str, str], str]] = {
    "truncated": lambda text, _: text[: len(text) // 2],
    "empty": lambda *_: "",
    "a digit changed": lambda text, _: text.replace('"seconds":1.5', '"seconds":2.5'),
    "another cell's record": lambda _, other: other,
    "another cell's record under this key": lambda text, other: text_of(
        json.loads(other) | {name: json.loads(text)[name] for name in ("key", "cell_id")}
    ),
    "another status": lambda text, _: text_of(json.loads(text) | {"status": "failed"}),
    "without a checksum, truncated": lambda text, _: json.dumps({**json.loads(text), "checksum": ""})[15:-9],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_cell_with_a_damaged_record_is_made_again(damage: str, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(
        f"{RANDOM}variants: [{{prune: magnitude, sparsity: 0.5}}]\nstructure: {{}}\nstorage: {{}}\n"
    )
    ready = prepare(PlanRequest(tmp_path / "m.yaml"))
    folder = tmp_path / "records"
    for cell in ready.plan.cells:
        make = {"make": samples.sparsified, "structure": samples.structured, "storage": samples.stored}[cell.stage]
        outcome = records.CellOutcome("done", json.loads(json.dumps(samples.asdict(make(cell)))), seconds=1.5)
        records.write(folder, records.make(cell, "m", outcome, "cpu", STRANGER))
    first, second = (folder / f"{cell.id}.done.json" for cell in ready.plan.cells[-2:])
    found, wrong = verified(decisions(ready, folder, False), folder, ready.device)
    assert not wrong and not any(decision.runs for decision in found)
    old = {key: value for key, value in json.loads(first.read_text()).items() if key not in ("checksum", "origin")}
    text = first.read_text()
    first.write_text(json.dumps(old))
    assert verified(decisions(ready, folder, False), folder, ready.device)[1] == []
    first.write_text(DAMAGE[damage](text, second.read_text()))
    found, wrong = verified(decisions(ready, folder, False), folder, ready.device)
    assert [decision.cell.id for decision in found if decision.runs] == [ready.plan.cells[-2].id]
    assert len(wrong) == 1 and first.name in wrong[0]
