"""How good, how fast and how small pruning is here, against the straightforward procedure of `reference.py`.

    python studies/methods.py quality FOLDER TEXT --out results.jsonl [--windows 20] [--seed 1]
    python studies/methods.py speed FOLDER --out results.jsonl
    python studies/methods.py memory FOLDER --out results.jsonl [--method wanda] [--samples 32]
    python studies/methods.py copying FOLDER --out results.jsonl

FOLDER is a decoder of the Llama kind in float32 or bfloat16, TEXT a WikiText file. Every run is a process of its own, start
included; with OMP_NUM_THREADS=1 its CPU seconds can be compared on a machine that others use too. What is in results.jsonl
already is not run again, so that a benchmark can be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
FIVE = ("0.1", "0.5", "0.9", "0.95", "0.99")
FIVE_SHARES = f"sparsity: [{', '.join(FIVE)}]"


class Results:
    """Finished measurements by name, one JSON line each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.known = {entry["name"]: entry for entry in map(json.loads, lines)}

    def __contains__(self, name: str) -> bool:
        return name in self.known

    def add(self, name: str, **values: Any) -> None:
        """Keep and print one measurement."""
        self.known[name] = {"name": name, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(self.known[name]) + "\n")
        print(name, *(f"{key} {value}" for key, value in values.items()), flush=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on disk that goes afterwards."""
    path = Path(tempfile.mkdtemp(prefix="pruned-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(*words: str) -> dict[str, float]:
    """Run a command; its wall and CPU seconds, and the peak of its anonymous memory in GB (sampled every 20 ms)."""
    started, before = time.perf_counter(), os.times()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return
            anonymous = [int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")]
            peak[0] = max(peak[0], *anonymous, 0)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    watcher.join()
    after = os.times()
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(words)}")
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(cpu, 1),
        "anonymous_gb": round(peak[0] / 1e6, 3),
    }


def ours(asked: argparse.Namespace, out: Path, *steps: str) -> dict[str, float]:
    """One pass of `sweep.py` in a process of its own."""
    text = ("--family", asked.family, "--calibration", f"{{samples: {asked.samples}, length: 512}}")
    return run(
        sys.executable, str(HERE / "sweep.py"), str(asked.folder), str(out), *steps, *text, "--seed", str(asked.seed)
    )


def reference(folder: Path, out: Path, *options: str) -> dict[str, float]:
    """The straightforward procedure in a process of its own."""
    return run(sys.executable, str(HERE / "reference.py"), str(folder), str(out), *options)


def evaluate(folder: Path, text: Path, windows: int) -> dict[str, Any]:
    """Perplexity on the first windows of 1024 tokens, with the mean log-likelihood of each window for intervals."""
    from sparsebench.benchmarks.running_text import wikitext
    from studies.perplexity import perplexity

    value, each = perplexity(folder, wikitext(text), 1024, limit=windows)
    return {"perplexity": value, "windows": [round(mean, 6) for mean in each]}


def quality(asked: argparse.Namespace, results: Results) -> None:
    """The same calibration, the same text: ours, behind pruned predecessors as published, and the reference."""
    if "dense" not in results:
        results.add("dense", **evaluate(asked.folder, asked.text, asked.windows))
    tag = f" seed {asked.seed}" if asked.seed else ""
    for method in asked.methods:
        for value in asked.points:
            flag = "--pattern" if ":" in value else "--sparsity"
            with scratch() as out:
                if (name := f"reference {method} {value}{tag}") not in results:
                    cost = reference(asked.folder, out / "reference", "--method", method, flag, value, *asked.read)
                    results.add(name, **cost, **evaluate(out / "reference", asked.text, asked.windows))
        wanted = [value for value in asked.points if f"ours {method} {value}{tag}" not in results]
        with scratch() as out:
            if wanted:
                patterns = [f"prune: {method}, pattern: {value}" for value in wanted if ":" in value]
                shares = ", ".join(value for value in wanted if ":" not in value)
                steps = [*([f"prune: {method}, sparsity: [{shares}]"] if shares else []), *patterns]
                results.add(f"ours {method} sweep of {' '.join(wanted)}{tag}", **ours(asked, out / "ours", *steps))
            for value in wanted:
                folder = out / "ours" / (value.replace(":", "of") if ":" in value else f"{float(value):.2f}")
                results.add(f"ours {method} {value}{tag}", **evaluate(folder, asked.text, asked.windows))


def speed(asked: argparse.Namespace, results: Results) -> None:
    """One run, five separate runs, one sweep: ours and the reference's, in turn."""
    for method in asked.methods:
        plans = {
            f"{method} reference one": lambda out, m=method: reference(
                asked.folder, out / "a", "--method", m, "--sparsity", "0.5", *asked.read
            ),
            f"{method} ours one": lambda out, m=method: ours(asked, out / "a", f"prune: {m}, sparsity: 0.5"),
            f"{method} ours sweep dense": lambda out, m=method: ours(
                asked, out / "a", f"prune: {m}, propagate: dense, {FIVE_SHARES}"
            ),
            f"{method} ours sweep pruned": lambda out, m=method: ours(asked, out / "a", f"prune: {m}, {FIVE_SHARES}"),
        }
        if asked.propagate:
            plans = {name: plan for name, plan in plans.items() if "sweep" not in name or asked.propagate in name}
        for name, plan in plans.items():
            if name not in results:
                with scratch() as out:
                    results.add(name, **plan(out))
    for propagate in ("dense", "pruned"):
        name = f"all three, five sparsities, {propagate}"
        if asked.propagate in (None, propagate) and name not in results:
            with scratch() as out:
                read = [f"prune: {method}, propagate: {propagate}, {FIVE_SHARES}" for method in ("wanda", "sparsegpt")]
                results.add(name, **ours(asked, out / "a", f"prune: magnitude, {FIVE_SHARES}", *read))


def memory(asked: argparse.Namespace, results: Results) -> None:
    """Peak anonymous memory of one method at 50%, and what remains of it when the libraries are taken off."""
    name = f"memory {asked.folder.name} {asked.method} {asked.samples}×512"
    if name in results:
        return
    if "memory libraries" not in results:
        results.add("memory libraries", **run(sys.executable, "-c", "import torch, transformers.modeling_utils"))
    with scratch() as out:
        granularity = f", granularity: {asked.granularity}" if asked.granularity else ""
        step = f"prune: {asked.method}, sparsity: 0.5, propagate: dense{granularity}"
        results.add(name, **ours(asked, out / "a", step))


def copying(asked: argparse.Namespace, results: Results) -> None:
    """One global threshold at five sparsities, beside copying the files five times: both on disk when they end."""
    for turn in range(3):
        if (name := f"copy {turn}") not in results:
            with scratch() as out:
                each = [run("cp", "-r", str(asked.folder), str(out / share)) for share in FIVE]
                results.add(name, seconds=round(sum(one["seconds"] for one in each) + run("sync")["seconds"], 1))
        if (name := f"magnitude global five {turn}") not in results:
            with scratch() as out:
                made = ours(asked, out / "a", f"prune: magnitude, granularity: global, {FIVE_SHARES}")
                results.add(name, **made | {"seconds": round(made["seconds"] + run("sync")["seconds"], 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed", "memory", "copying"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--samples", type=int, default=64, help="calibration samples of 512 tokens (quality, speed)")
    parser.add_argument("--points", nargs="+", default=["0.1", "0.5", "0.7", "0.9", "2:4"], help="quality: which")
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"], help="quality, speed: of which methods")
    parser.add_argument(
        "--propagate", choices=["dense", "pruned"], help="speed: only sweeps of this kind; default: both"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the calibration passages drawn")
    parser.add_argument("--method", default="wanda", help="memory: which one")
    parser.add_argument("--granularity", default="", help="memory: other than the method's own")
    parser.add_argument("--family", default="decoder", help="memory: the model's")
    asked = parser.parse_args()
    asked.read = ["--samples", str(asked.samples), "--length", "512", "--seed", str(asked.seed)]
    what = {"quality": quality, "speed": speed, "memory": memory, "copying": copying}
    what[asked.what](asked, Results(asked.out))


if __name__ == "__main__":
    main()
