"""Writes docs/systems.md from the published records: ``python docs/systems.py LEDGER`` (``make report``).

``systems.yaml`` says what each toolkit does and which recipe does it here; the ledger has the numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparsebench.manifest.recipes import verb_and_name
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.registry import combinations, kinds, label, with_text

DOCS = Path(__file__).parent
TRAINING = "tokens: 40000, length: 64, batch: 32, rate: 0.001"
TEXTS = {"features": ("path:g2p/words.jsonl", ("word", "sounds"))}
"""The calibration texts of manifests that name one, with their columns."""
HEAD = f"""<!-- Made by docs/systems.py out of docs/systems.yaml and ledger/published: change these, then `make report`. -->

# What other toolkits do

Each table has what a toolkit does, the lines of a manifest that do it here, and what came of it, beside a baseline. Where
no baseline is named, it is the dense model. The difference is that of the paired documents, with its 95% interval. Numbers
are shares: of 2,000 words that the g2p T5 spells right (`g2p`), of questions whose passage MiniLM finds
(`sciq_retrieval`), of questions whose subject MiniLM tells by a head (`subjects`). SmolLM2's and the small mixture's are
perplexities (`perplexity`, `spoken`), better when lower. `…` stands for `{TRAINING}`:
little text, on purpose, so that all of it runs on two cores in an hour. What training is worth with more text is in
[recovery](recovery.md).

The manifests are `examples/features.yaml`, `features-text.yaml` and `features-experts.yaml`, after `python
examples/features/prepare.py`. A row's numbers come from

```sql
SELECT * FROM results WHERE manifest = 'features' AND recipe = 'RECIPE'
```

in a ledger of `ledger/published`, with RECIPE from the last column, and the row's manifest where it names another.
"""


@dataclass(frozen=True)
class Feature:
    """A row: what a toolkit calls it, and either the recipe that does it here or why there is none (``absent``).

    ``beside`` is the recipe that it is compared with; empty for the dense model.
    """

    there: str
    here: str = ""
    beside: str = ""
    absent: str = ""
    model: str = "g2p-t5"
    manifest: str = "features"
    task: str = "g2p"

    def words(self, recipe: str) -> str:
        """Return what the ledger calls a recipe of this row's manifest. Raises ValueError for one with several variants."""
        return "dense" if not recipe else ", then ".join(label(step) for step in steps(recipe, self.manifest))

    @property
    def query(self) -> str:
        """The query of this row's number."""
        recipe = self.words(self.here).replace("'", "''")
        return f"SELECT * FROM results WHERE manifest = '{self.manifest}' AND model = '{self.model}' AND recipe = '{recipe}'"


def features() -> dict[str, list[Feature]]:
    """Return the rows by toolkit."""
    read = yaml.safe_load((DOCS / "systems.yaml").read_text(encoding="utf-8"))
    return {part["toolkit"]: [Feature(**row) for row in part["rows"]] for part in read}


def steps(recipe: str, manifest: str) -> Iterator[Any]:
    """Yield the steps of a recipe as a manifest has it, with the text that it reads filled in."""
    written = yaml.safe_load(recipe.replace("…", TRAINING))
    for step in written if isinstance(written, list) else [written]:
        verb, name = verb_and_name(step, kinds())
        step = with_text(step, *TEXTS.get(manifest, (DEFAULT.source, (DEFAULT.field,))))
        (one,) = combinations(verb, name, {key: value for key, value in step.items() if key != verb})
        yield one


Scores = tuple[Mapping[str, Any], Mapping[str, Any]]
"""The score of a row's recipe, and that of its baseline."""


def scored(ledger: Path) -> dict[Feature, Scores]:
    """Return the rows that the ledger has both scores of."""
    from sparsebench.ledger import query

    rows = [row for rows in features().values() for row in rows if row.here]
    asked = {"manifests": sorted({row.manifest for row in rows})}
    result = query.run(ledger, (DOCS / "systems.sql").read_text(encoding="utf-8"), asked)
    scores = {(score["manifest"], score["model"], score["recipe"], score["task"]): score for score in result.dicts()}
    found: dict[Feature, Scores] = {}
    for row in rows:
        one, other = (
            scores.get((row.manifest, row.model, row.words(recipe), row.task)) for recipe in (row.here, row.beside)
        )
        if one and other:
            found[row] = one, other
    return found


def page(ledger: Path) -> str:
    """Return the page; a row without scores in the ledger says that its number is to come."""
    from sparsebench.ledger import derive, query, statistics

    scores = scored(ledger)
    with query.reader(ledger) as connection:
        outcomes = derive.pairs(connection, [(one["record_id"], other["record_id"]) for one, other in scores.values()])
        compared = {
            row: statistics.compare(one["metric"], both, one["chance"])
            for (row, (one, _)), both in zip(scores.items(), outcomes, strict=True)
        }
    text = HEAD + outcome([comparison for row, comparison in compared.items() if row.beside])
    for toolkit, rows in features().items():
        text += (
            f"\n## {toolkit}\n\n| there | here | number | beside | difference | recipe |\n|---|---|---|---|---|---|\n"
        )
        text += "".join(line(row, scores.get(row), compared.get(row)) for row in rows)
    return text


def outcome(comparisons: Sequence[Any]) -> str:
    """Return how many of the rows with a baseline of their own are shown to differ from it."""
    signs = {True: 0, False: 0}
    for one in comparisons:
        if one.low is not None and (one.low > 0 or one.high < 0):
            signs[(one.low > 0) == one.higher_is_better] += 1
    rest = len(comparisons) - sum(signs.values())
    return (
        f"\nOf {len(comparisons)} rows with a baseline of their own, {signs[True]} are better than it by these intervals, "
        f"{signs[False]} worse, and {rest} are not shown to differ. No correction is made for their number.\n"
    )


def line(row: Feature, scores: Scores | None, compared: Any) -> str:
    """Return the row as a line of its toolkit's table."""
    if row.absent:
        return f"| {row.there} | absent: {row.absent} | | | | |\n"
    if scores is None:
        return f"| {row.there} | `{row.here}` | to come: `examples/{row.manifest}.yaml` | | | |\n"
    one, other = (f"{score['score']:.4g}" if score["score"] >= 10 else f"{score['score']:.3f}" for score in scores)
    difference = ""
    if compared.difference is not None:
        difference = f"{compared.difference:+.3f} [{compared.low:+.3f}, {compared.high:+.3f}]"
    task = "" if row.task == "g2p" else f" ({row.task})"
    beside = f"`{row.beside}`: {other}" if row.beside else f"dense: {other}"
    manifest = "" if row.manifest == "features" else f" ({row.manifest}, {row.model})"
    recipe = row.words(row.here).replace("|", "\\|")
    return f"| {row.there} | `{row.here}` | {one}{task} | {beside} | {difference} | `{recipe}`{manifest} |\n"


if __name__ == "__main__":
    (DOCS / "systems.md").write_text(page(Path(sys.argv[1])), encoding="utf-8")
