"""Packs a finished run's records for `ledger/published`: as `sparsebench bundle`, with the origin `published`.

    python studies/publish.py RECORDS ledger/published/NAME.jsonl.zst NAME

RECORDS is the run's folder of records, NAME the manifest's name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard

from sparsebench import bounded, provenance
from sparsebench.errors import LedgerError


def main() -> None:
    """Write the bundle, and print its number of lines and bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        bundle = Path(passing) / asked.out.name
        command = [sys.executable, "-m", "sparsebench", "bundle", asked.records, bundle, "--manifest", asked.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        records = [{**json.loads(line), "origin": "published"} for line in bounded.lines(bundle, LedgerError)]
    lines = [json.dumps(provenance.sealed(record), separators=(",", ":")) for record in records]
    asked.out.write_bytes(zstandard.ZstdCompressor(level=19).compress("\n".join([*lines, ""]).encode()))
    print(f"{asked.out}: {len(lines)} records, {asked.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
