"""Records as nobody's friend would write them: every text of theirs tries to be more than text."""

import json
from typing import Any

from sparsebench.environment import environment_id
from tests.ledger import samples

CANARY = b"what lies beside the ledger and is nobody's business"
HOSTILE = (
    "![x](../secret.png) <img src='../secret.png'> <script>alert(1)</script> [l](javascript:alert(1)) `![y](../secret.png)`"
    " $\\frac{ ~~s~~ **b** __u__ | ![z](../secret.png) | &lt;</summary></details></script> \\ \x1b[31m \x9b31m\n\n# Head\n\n"
    "![x](../secret.png)\n\n*x*\n\n<img src=../secret.png>\n\n```\n1. one\n    code\n| a |\n| --- |\n| ![x](../secret.png) |\n"
)
_STRUCTURE = {
    *("cell_id", "stage", "status", "started_at", "written_at", "id", "doc_id", "doc_hash", "phase", "side", "metric", "pattern"),
    *("family", "weights", "kind", "key", "origin"),
}  # fmt: skip
"""What a ledger sorts records by: another value there would make another report, not another text in it."""


def records(suffix: str) -> list[dict[str, Any]]:
    """A small experiment, some of it failed, whose texts all end in ``suffix``."""
    found = samples.sample(samples.small())
    for record in found[-3:]:
        record.update(status="failed", result=None, reason="it broke")
    told = [_told(record, suffix) for record in found]
    for environment in (record["environment"] for record in told if "environment" in record):
        environment["id"] = environment_id(environment)
    return [{key: value for key, value in record.items() if key != "checksum"} for record in told]


def _told(value: Any, suffix: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _told(item, suffix, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_told(item, suffix, key) for item in value]
    if not isinstance(value, str) or key in _STRUCTURE or value == "dense":
        return value
    return value + suffix


def lines(suffix: str) -> bytes:
    """``records`` as a bundle holds them, before it is compressed."""
    return b"".join(json.dumps(record).encode() + b"\n" for record in records(suffix))
