"""The page in a real browser; skipped where there is none.

``SPARSEBENCH_BROWSER`` names a Python that has PySide6 with QtWebEngine (``pip install 'PySide6-Addons[webengine]'``);
without it, this Python is tried.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sparsebench.report import build
from tests.report.test_page import SVG

PYTHON = os.environ.get("SPARSEBENCH_BROWSER", sys.executable)
LUMINANCE = """
(() => {
  const channel = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = colour.map((value) => channel(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    if (!element) return [255, 255, 255];
    const [red, green, blue, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
    if (alpha === 1) return [red, green, blue];
    const below = ground(element.parentElement);
    return [red, green, blue].map((value, at) => alpha * value + (1 - alpha) * below[at]);
  };
  const lowest = {};
  for (const element of document.querySelectorAll("main p, main a:not(.anchor), td, th, code, figcaption, summary, nav a")) {
    const [a, b] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    lowest[element.tagName] = Math.min(contrast, lowest[element.tagName] ?? 21);
  }
  return {
    dark: matchMedia("(prefers-color-scheme: dark)").matches, contrast: lowest, page: document.documentElement.scrollWidth,
    window: innerWidth, pictures: [...document.images].map((image) => image.naturalWidth),
    contents: document.querySelector("#contents details").open,
    outside: performance.getEntriesByType("resource").map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
  };
})()
"""
SORTED = """
(() => {
  const heading = [...document.querySelectorAll("thead .number")].find((cell) => cell.textContent === "file, %");
  const column = () => [...heading.closest("table").tBodies[0].rows].map((row) => row.cells[heading.cellIndex].textContent);
  const seen = [[heading.ariaSort, column()]];
  for (let click = 0; click < 3; click++) {
    heading.querySelector("button").click();
    seen.push([heading.ariaSort, column()]);
  }
  return seen;
})()
"""
EXPLORED = """
(() => {
  const rows = () => [...document.querySelectorAll(".points ~ .scroll tbody")][0].querySelectorAll("tr:not([hidden])").length;
  const points = () => document.querySelectorAll(".points circle").length;
  const [model] = document.querySelectorAll(".filters select");
  const before = [rows(), points(), document.querySelector(".filters output").value];
  model.value = model.options[1].value;
  model.dispatchEvent(new Event("input"));
  const after = [rows(), points(), document.querySelector(".filters output").value];
  const point = document.querySelector(".points circle");
  point.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  const row = document.querySelector("tr.found");
  const names = [...document.querySelectorAll(".filters label")].map((label) => label.textContent.trim().split(" ")[0]);
  const told = point.querySelector("title").textContent;
  const led = told.includes(row.cells[2].textContent) && told.includes("{prune: ");
  return { before, after, names, led, models: model.options.length };
})()
"""


@cache
def _browser() -> bool:
    asked = "import PySide6.QtWebEngineWidgets"
    return subprocess.run([PYTHON, "-c", asked], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def page(ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not _browser():
        pytest.skip("no QtWebEngine here: SPARSEBENCH_BROWSER can name a Python that has it")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "score.png").write_bytes(b"")
    (folder / "score.svg").write_text(SVG)
    return build(ledger, folder / "report.md", folder, formats=("html",))[0]


def opened(page: Path, width: int, scheme: str, script: str) -> Any:
    command = [PYTHON, str(Path(__file__).with_name("browser.py")), str(page), str(width), scheme, script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["messages"] == []
    return answer["found"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_and_can_be_read(page: Path, width: int, scheme: str) -> None:
    found = opened(page, width, scheme, LUMINANCE)
    assert found["window"] == width
    assert found["page"] <= width
    assert found["dark"] == (scheme == "dark")
    assert min(found["contrast"].values()) >= 4.5
    assert found["pictures"]
    assert min(found["pictures"]) > 0
    assert found["contents"] == (width > 1000)
    assert found["outside"] == []


def test_a_table_sorts_up_down_and_back(page: Path) -> None:
    (none, came), (up, rising), (down, falling), (again, back) = opened(page, 1280, "light", SORTED)
    assert (none, up, down, again) == (None, "ascending", "descending", None)
    assert back == came
    assert sorted(came) == sorted(rising) == sorted(falling)
    values = [float(text.strip("%<")) for text in rising]
    assert values == sorted(values)
    assert values[0] < values[-1]
    assert rising[::-1] == falling


def test_all_variants_are_filtered_and_a_point_leads_to_its_row(page: Path) -> None:
    found = opened(page, 1280, "light", EXPLORED)
    (every, drawn, told), (fewer, left, said) = found["before"], found["after"]
    assert every >= drawn > 0 and told == f"{every} of {every}"
    assert 0 < fewer < every and left <= fewer and said == f"{fewer} of {every}"
    assert found["models"] == 3 and found["led"]
    assert set(found["names"]) >= {"model", "kind", "gate", "upward", "words"}, "each control has a name"
