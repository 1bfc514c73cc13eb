"""Short names of models: what each stands for, and that nothing measured depends on which of the two was written."""

from pathlib import Path

import pytest

from sparsebench.errors import SourceError
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.plan.single import prepare_single
from sparsebench.sources import KNOWN, aliases, parse

MANIFEST = """
version: 1
models:
  - {{name: small, source: "{small}", family: decoder, dtype: bfloat16}}
  - {{name: g2p, source: "{g2p}", family: encoder-decoder}}
variants: [{{prune: magnitude, sparsity: 0.5}}]
benchmarks: {{decoder: [{{task: piqa, limit: 4}}], encoder-decoder: [{{task: g2p, limit: 4}}]}}
"""


@pytest.mark.parametrize("alias", KNOWN)
def test_an_alias_is_its_source_and_can_be_nothing_else(alias: str) -> None:
    known, source = KNOWN[alias], parse(alias)
    assert not set(alias) & set(":/\\")
    assert parse(source.text) == source
    assert source.text == known.source or source.location.endswith(known.source.removeprefix("path:"))
    assert all(part.sha256 for part in source.parts)
    assert (known.size is None) == (source.kind == "hf")


def test_cells_have_the_same_ids_under_an_alias(tmp_path: Path) -> None:
    written = {"alias": {"small": "smollm2-135m", "g2p": "g2p-t5"}}
    written["whole"] = {key: parse(alias).text for key, alias in written["alias"].items()}
    found = {}
    for name, sources in written.items():
        path = tmp_path / name / "same.yaml"
        path.parent.mkdir()
        path.write_text(MANIFEST.format(**sources))
        found[name] = [(cell.id, cell.variant) for cell in prepare(PlanRequest(path, offline=True)).plan.cells]
    assert found["alias"] == found["whole"]
    assert len(found["alias"]) > 8


def test_an_alias_that_does_not_exist_names_those_that_are_close() -> None:
    with pytest.raises(SourceError) as caught:
        parse("smollm-135m")
    assert "smollm2-135m" in (caught.value.hint or "") and "sparsebench models" in (caught.value.hint or "")


def test_a_folder_with_the_name_of_an_alias_is_not_guessed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "minilm-l6").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="minilm-l6.*alias"):
        prepare_single("minilm-l6", None, "auto", True)


def test_a_repositorys_missing_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_CHECKOUT", tmp_path)
    with pytest.raises(SourceError, match="g2p-t5"):
        parse("g2p-t5")
