"""docs/architecture.md says what one touches to add something; here one of each is added to a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## To add")[2]
NEW = {
    "steps/prune/methods/newest.py": "def score(layer):\n    return layer.weights.abs()\n",
    "steps/newest.py": """\
from sparsebench.steps.contract import Settings

class Newest(Settings):
    by: float = 0.5

def settings():
    return {"only": Newest}

def run(parent, targets, context, emit):
    raise NotImplementedError
""",
    "runtime/engines/newest.py": "class Newest:\n    name = 'newest'\n",
    "storage/newest.py": "def sizes(folder):\n    return 0, {}\n",
    "figures/shipped/newest.sql": "-- title: Newest\n-- about: nothing\n-- kind: bars\n-- x: n\n-- y: n\nSELECT 1 AS n\n",
}
ROWS = {
    "steps/prune/registry.py": 'Method("newest", score=f"{_FILES}.newest:score", summary="is new"),',
    "steps/registry.py": 'StepKind("newest", newest.settings, f"{_STEPS}.newest:run"),',
    "runtime/engines/__init__.py": 'EngineInfo("newest", "sparsebench.runtime.engines.newest:Newest"),',
    "storage/formats.py": 'Format("newest", None, newest.sizes, None),',
    "benchmarks/catalog.py": '_squad("newest", metric="exact_match", scale="0/1", description="again"),',
}
"""A row for the table ``BUILT_IN`` of each file."""
IMPORTS = {
    "steps/registry.py": "from sparsebench.steps import newest\n",
    "storage/formats.py": "from sparsebench.storage import newest\n",
}
CHECK = """
from pathlib import Path

from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.figures.spec import listing
from sparsebench.plan.checks import load
from sparsebench.plan.expand import recipes
from sparsebench.runtime.engines import engine, engines
from sparsebench.steps.prune.registry import methods
from sparsebench.steps.registry import label
from sparsebench.storage.formats import formats

Path("added.yaml").write_text('''
version: 1
models: [{name: m, source: "path:.", family: decoder}]
variants:
  - {prune: newest, sparsity: 0.5}
  - {newest: only, by: [0.25, 0.75]}
benchmarks: {decoder: [{task: newest}]}
runtime: {engines: newest, workloads: {batch: 1, prompt: 8, generate: 2}}
storage: {formats: [newest]}
''')
manifest = load(Path("added.yaml")).manifest
print([label(step) for entry in manifest.variants for recipe in recipes(entry) for step in recipe])
assert engine("newest").name == "newest" and methods()["newest"].load_score()
assert all("newest" in table for table in (all_tasks(), engines(), formats(), [spec.name for spec in listing()]))
"""


def test_one_of_each_is_there_after_the_files_that_the_page_names(tmp_path: Path) -> None:
    package, ignored = tmp_path / "sparsebench", shutil.ignore_patterns("__pycache__", "*.png", "*.svg")
    shutil.copytree(ROOT / "sparsebench", package, ignore=ignored)
    for name, text in NEW.items():
        (package / name).write_text(text)
    for name, row in ROWS.items():
        text = (package / name).read_text()
        assert text.count("\nBUILT_IN = (\n") == 1, name
        text = text.replace("\nBUILT_IN = (\n", f"\nBUILT_IN = (\n    {row}\n")
        text = text.replace("\nfrom sparsebench", f"\n{IMPORTS.get(name, '')}from sparsebench", 1)
        (package / name).write_text(text)
    where: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=False, **where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['newest/layer 50%', 'only by=0.25', 'only by=0.75']"
    named = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert set(ROWS) <= set(named) and all((ROOT / "sparsebench" / name).is_file() for name in named)
