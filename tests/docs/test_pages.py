"""What the pages say of methods and tasks is what the tables and the code say, and their commands are understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from sparsebench.benchmarks import probe
from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.benchmarks.own import MASKED_WINDOW
from sparsebench.benchmarks.perplexity import WINDOW
from sparsebench.cli.app import app
from sparsebench.models.files.text import JOINER
from sparsebench.steps import calibration, factor
from sparsebench.steps.prune.methods import alps, sparsegpt
from sparsebench.steps.prune.registry import BUILT_IN
from sparsebench.steps.prune.settings import Prune
from tests.manifest.loading import load_text

ROOT = Path(__file__).parents[2]
PAGES = [str(path.relative_to(ROOT)) for path in (*ROOT.glob("[A-Z]*.md"), *sorted((ROOT / "docs").rglob("*.md")))]
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
VERBS = typer.main.get_command(app).commands
HEAD = "version: 1\nmodels:\n- {name: m, source: hf:a/m, family: decoder}\n"


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a page's tables whose first cell is a name in backticks."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    found = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {name: cells[1:] for cells in found for name in re.findall(r"`([^`]+)`", cells[0])}


def test_the_tables_of_methods_are_the_registry() -> None:
    table = rows(METHODS.split("## Smaller shapes")[0])
    needs = {"": "nothing", "squares": "Σ x_j²", "gram": "Σ x xᵀ"}
    for method in BUILT_IN:
        _, changes, needed, scopes = table[method.name]
        assert changes == ("yes" if method.solve or method.trains else "no")
        assert needed == needs[method.needs]
        assert scopes == ", ".join(method.granularities)


def test_the_table_of_tasks_is_the_catalog() -> None:
    table = rows((ROOT / "docs" / "benchmarks.md").read_text())
    assert set(table) == set(all_tasks())
    for name, (families, metric, count) in table.items():
        assert all(family in families for family in all_tasks()[name].families)
        assert metric == all_tasks()[name].metric
        assert f"{all_tasks()[name].n:,}" in count
    page = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    for said in (
        f"windows of {WINDOW:,} tokens",
        f"in windows of {MASKED_WINDOW} tokens",
        f"at most {probe.MAX_ITER} iterations) on the vectors, each trained on {probe.PER_LABEL} documents of either class",
        f"so {probe.POOL} documents of the validation split",
        f"the other {all_tasks()['sst2_probe'].n} are scored",
    ):
        assert said in page


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    page, default = " ".join(METHODS.split()), calibration.DEFAULT
    assert (JOINER, factor.DAMPING, "boolq/none/validation" in default.source) == ("\n\n", (0.01, 0.1, 1.0, 10.0), True)
    assert (alps.DAMPING, alps.SOFTER, alps.PERIOD, alps.REFINE) == (0.01, 5.0, 3, 10)
    widths = {pattern: sparsegpt.block_width(pattern) for pattern in ("1:10", "1:200")}
    much, some, little = (growth for _, growth in alps.GROWTH)
    for said in (
        f"samples: {default.samples} ",
        f"default: {calibration.LENGTH}, or the model's maximum",
        "is 0.01 of the mean diagonal; where H cannot be factorised, 0.1, then 1, then 10",
        f"panels of {sparsegpt.WIDTH}.",
        f"{widths['1:10']} for 1:10, {widths['1:200']} for 1:200",
        f"ρ = {alps.PENALTY}; every third step ρ grows by {much}, {some} or {little}",
        "divided by 5 instead",
        f"after {alps.STEPS} steps",
        f"above {Prune.model_fields['outlier'].default:g} times the block's mean",
        f"· {2 * Prune.model_fields['spread'].default:g} ",
    ):
        assert said in page


def test_manifests_on_the_pages_are_valid(tmp_path: Path) -> None:
    texts = ((ROOT / page).read_text() for page in PAGES)
    blocks = [block for text in texts for block in re.findall(r"```yaml\n(.+?)```", text, re.DOTALL)]
    plain = [block for block in blocks if not re.search("prune: rescaled|halve: depth", block)]
    assert len(plain) == len(blocks) - 3 >= 5
    for block in plain:
        for folder in re.findall(r"path:([\w/.-]+)", block):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in re.findall(r"(?:host)?file: ([\w.-]+)", block):
            (tmp_path / name).touch()
        head = "" if "version:" in block else "version: 1\n" if "models:\n" in block else HEAD
        load_text(head + block, str(tmp_path / "page.yaml"))


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"```.+?```", "", path.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.+?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|<a href=\"([^\"]+)\"", text):
        name, _, anchor = "".join(target).partition("#")
        if name.startswith("http"):
            continue
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), name
        assert not anchor or anchor in anchors(path), "".join(target)


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).with_suffix("").as_posix() for path in docs.rglob("*.md")}
    found = {"index", "results"}  # of which the latter stands behind the report, and not on the site
    for path in docs.rglob("index.md"):
        for tree in re.findall(r"```\{toctree\}\n(.+?)```", path.read_text(), re.DOTALL):
            names = [line for line in tree.splitlines() if line and not line.startswith(":")]
            found |= {(path.parent / name).relative_to(docs).as_posix() for name in names}
    assert found == pages


def commands(page: str) -> list[list[str]]:
    """The words of each call in the page's shell blocks, behind ``sparsebench``."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in lines:
        for part in re.split(r"&&|\|", line) if '"' not in line else [line]:
            words = shlex.split(part.partition(" > ")[0], comments=True)
            places = [place for place, word in enumerate(words) if word.split("/")[-1] == "sparsebench"]
            if places and "install" not in words[: places[0]] and "=" not in words[places[0]]:
                found.append(words[places[0] + 1 :])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page: str) -> None:
    for verb, *words in commands(page):
        if verb.startswith("--"):
            assert verb in ("--version", "--install-completion", "--show-completion")
        else:
            VERBS[verb].make_context(verb, words)
    assert len(commands(page)) > {"README.md": 8, "docs/tutorial.md": 10}.get(page, -1), "the check must see them"


def test_a_method_in_a_command_exists() -> None:
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    found = re.findall(r'sparsebench apply [^\n]*?"prune: ([\w-]+)', text)
    assert len(found) > 1
    assert set(found) <= {method.name for method in BUILT_IN} | {"rescaled"}
