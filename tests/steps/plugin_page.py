"""A package as a page shows it, put on sys.path as an installer would."""

import re
import sys
import tomllib
from pathlib import Path

import pytest


def block(page: str, language: str) -> str:
    """The page's only block of a language."""
    (found,) = re.findall(rf"```{language}\n(.+?)```", page, re.DOTALL)
    return str(found)


def length(page: str) -> int:
    """Lines of code that are not empty."""
    return sum(bool(line.strip()) for language in ("toml", "python") for line in block(page, language).splitlines())


def install(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's module, and the metadata that an installer makes of its pyproject.toml; gone with ``monkeypatch``."""
    project = tomllib.loads(block(page, "toml"))["project"]
    name = project["name"].replace("-", "_")
    site = folder / "site-packages"
    metadata = site / f"{name}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(block(page, "python"))
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(head)
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{key} = {at}\n" for key, at in rows.items()) for group, rows in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, name, raising=False)
