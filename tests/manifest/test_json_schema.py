"""The published JSON Schema: up to date, right about every manifest that is shipped, and about wrong ones."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from sparsebench.cli.init import manifest_schema
from sparsebench.manifest.nodes import read_yaml
from sparsebench.manifest.published import MODELINE, SCHEMA_FILE, starter

ROOT = Path(__file__).parents[2]
SHIPPED = [*ROOT.glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")]
SCHEMA = manifest_schema()
CHECK = Draft202012Validator(SCHEMA)
RIGHT = """
version: 1
models: [{name: m, source: "path:m", family: decoder}]
variants:
- {prune: wanda, granularity: row, sparsity: 0.5}
- {prune: magnitude, sparsity: [0.1, 0.99], pattern: [unstructured, 4x4]}
- - {prune: magnitude, pattern: "2:4"}
calibration: {source: "wheel:a==1!b"}
benchmarks: {encoder-decoder: [{task: piqa, limit: 3}]}
runtime: {engines: sparse, workloads: {batch: 2}}
structure: null
"""


def faults(text: str) -> set[str]:
    """The places that the schema finds wrong, those within alternatives too."""
    data, _, problems = read_yaml(text, "manifest.yaml")
    assert problems == []
    errors = list(CHECK.iter_errors(data))
    for error in errors:
        errors += error.context or []
    return {".".join(map(str, error.absolute_path)) for error in errors}


def test_the_committed_file_is_the_schema_of_today() -> None:
    written = json.loads((ROOT / "docs" / SCHEMA_FILE).read_text())
    assert written == SCHEMA, f"renew it: sparsebench schema > docs/{SCHEMA_FILE}"


def test_it_is_a_schema_in_which_every_key_is_explained() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for name, shape in [("Manifest", SCHEMA), *SCHEMA["$defs"].items()]:
        assert shape["additionalProperties"] is False, name
        for key, value in shape["properties"].items():
            assert value.get("description") or "const" in value, f"{name}.{key}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_manifest_fits(path: Path) -> None:
    assert faults(path.read_text()) == set()


def test_the_starter_fits() -> None:
    assert faults(MODELINE + starter()) == set()
    assert faults(RIGHT) == set()


@pytest.mark.parametrize(
    ("right", "wrong", "at"),
    [
        ("version: 1", "version: 2", "version"),
        ("version: 1", "", ""),
        ("family: decoder", "family: decodr", "models.0.family"),
        ("name: m,", "name: a/b,", "models.0.name"),
        ("name: m,", "nam: m,", "models.0"),
        ('source: "path:m"', "source: 3", "models.0.source"),
        ("sparsity: 0.5", "sparsity: 50", "variants.0.sparsity"),
        ("sparsity: 0.5", "sparsity: 50%", "variants.0.sparsity"),
        ("sparsity: 0.5", "sparsity: []", "variants.0.sparsity"),
        ("granularity: row", "granularity: rows", "variants.0.granularity"),
        ("4x4", "4by4", "variants.1.pattern"),
        ("4x4", "neurons", "variants.1.pattern.1"),
        ('"2:4"', '"0:4"', "variants.2.0.pattern"),
        ("limit: 3", "limit: 0", "benchmarks.encoder-decoder.0.limit"),
        ("encoder-decoder:", "encoder_decoder:", "benchmarks"),
        ("engines: sparse", "engines: onnx", "runtime.engines"),
        ("batch: 2", "batches: 2", "runtime.workloads"),
    ],
)
def test_what_is_wrong_is_marked_where_it_stands(right: str, wrong: str, at: str) -> None:
    assert right in RIGHT
    assert at in faults(RIGHT.replace(right, wrong, 1))
