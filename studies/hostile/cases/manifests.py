"""Manifests of strangers: read, planned and, where they say where results go, run."""

from __future__ import annotations

from collections.abc import Iterator

from studies.hostile.harmless import MANIFEST
from studies.hostile.registry import case
from studies.hostile.sandbox import UP, Box, Step

_MODELS = "models: [{name: tiny, source: path:model, family: decoder}]\n"
_HEAD = f"version: 1\n{_MODELS}"


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return _HEAD + "\n".join(lines) + "\n"


def _bomb_of_maps(levels: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} {{" + ", ".join(f"k{place}: *a{level - 1}" for place in range(10)) + "}")
    return _HEAD + "\n".join(lines) + "\n"


_TEXTS: dict[str, str | bytes] = {
    "an alias bomb of lists": _bomb(9),
    "an alias bomb of mappings": _bomb_of_maps(9),
    "an alias bomb in a known key": _bomb(8).replace("a7:", "variants:"),
    "an alias to itself": _HEAD + "variants: &a [*a]\n",
    "brackets nested 100,000 deep": _HEAD + "variants: " + "[" * 100_000 + "]" * 100_000,
    "brackets nested 300 deep": _HEAD + "variants: " + "[" * 300 + "]" * 300,
    "blocks nested 1,000 deep": "".join(" " * place + "a:\n" for place in range(1000)),
    "5 MB of unknown keys": _HEAD + "".join(f"key{place}: {place}\n" for place in range(300_000)),
    "a key of 5 MB": _HEAD + "k" * 5_000_000 + ": 1\n",
    "a value of 20 MB": _HEAD + "name: " + "v" * 20_000_000 + "\n",
    "20 MB of comments": "# x\n" * 5_000_000 + _HEAD,
    "a million spaces": " " * 1_000_000 + "a: 1",
    "100,000 quotes": "'" * 100_000,
    "100,000 anchors": _HEAD + "variants: [" + ", ".join(f"&a{place} x" for place in range(100_000)) + "]\n",
    "100,000 documents": "---\nversion: 1\n" * 100_000,
    "a tag of Python": _HEAD + "name: !!python/object/apply:os.system ['touch MARKER']\n",
    "a tag of Python's objects": _HEAD + "name: !!python/object/new:subprocess.Popen [[touch, MARKER]]\n",
    "a tag of Python's modules": "!!python/module:os\n",
    "a tag that includes": _HEAD + "name: !include SECRET\n",
    "tags by a directive": "%TAG ! tag:yaml.org,2002:python/\n---\n" + _HEAD + "name: !object/apply:os.system [x]\n",
    "a merge key": _HEAD.replace("models:", "base: &b {x: 1}\n<<: *b\nmodels:"),
    "a merge key of itself": _HEAD + "variants: &a {<<: *a}\n",
    "a number of 100,000 digits": "version: " + "9" * 100_000 + "\n",
    "a number of 10**1000": "version: 1e1000\n",
    "numbers in base 60": "version: 1:1:1\n",
    "NaN": _HEAD + "variants: [{prune: magnitude, sparsity: .nan}]\n",
    "infinity": _HEAD + "variants: [{prune: magnitude, sparsity: .inf}]\n",
    "a list as a key": _HEAD + "? [a, b]\n: 1\n",
    "null everywhere": "version: null\nmodels: null\nvariants: null\nruntime: null\nbenchmarks: null\nstorage: null\n",
    "not UTF-8": b"version: \xff\xfe\n",
    "UTF-16": _HEAD.encode("utf-16"),
    "NUL": b"version: 1\0\n",
    "an escape": 'version: "\\e[2J"\n"\\e]0;hostile\\a": 1\n',
    "two directions": _HEAD + 'name: "abc\u202efed"\n',
    "empty": "",
    "binary": bytes(range(256)) * 100,
}


@case("a manifest with", _TEXTS)
def text(box: Box, content: str | bytes) -> Iterator[Step]:
    box.model()
    path = box.input / "hostile.yaml"
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(raw.replace(b"MARKER", str(box.marker).encode()).replace(b"SECRET", str(box.canary).encode()))
    yield box.do("plan", path, "--ledger", box.out / "ledger.duckdb")


_SWEEP = "variants: [{{prune: magnitude, granularity: layer, sparsity: [{}]}}]\n"
_ENTRIES = {
    "a sweep of 100,000": _HEAD + _SWEEP.format(", ".join(f"0.{place:06}" for place in range(1, 100_000))),
    "1,000 models": "version: 1\nmodels:\n"
    + "".join(f"  - {{name: m{place}, source: path:model, family: decoder}}\n" for place in range(1000)),
    "10**9 ranks": _HEAD + "runtime: {ranks: [1000000000], workloads: {batch: 1, prompt: 8, generate: 2}}\n",
    "a batch of 10**12": _HEAD + "runtime: {ranks: 1, workloads: {batch: 1000000000000, prompt: 8, generate: 2}}\n",
    "10**12 samples": _HEAD + "calibration: {samples: 1000000000000, length: 1000000000000}\n",
    "thresholds without end": _HEAD + "structure: {absolute: [" + ", ".join(f"{place}e-6" for place in range(1, 20_000)) + "]}\n",
    "a name that leads out": _HEAD.replace("tiny", "../../../../outside/planted"),
    "its own name leading out": _HEAD + "name: ../../../../outside/planted\n",
    "a name with an escape": _HEAD.replace("name: tiny", 'name: "\\e[2Jx"'),
    "a name of 300 letters": _HEAD.replace("tiny", "n" * 300),
    "an architecture nested 200 deep": "version: 1\nmodels: [{name: x, source: random, family: decoder, architecture: "
    + "{a: " * 200 + "1" + "}" * 200 + "}]\n",
    "an architecture with auto_map": "version: 1\nmodels: [{name: x, source: random, family: decoder, architecture: "
    "{model_type: hostile, auto_map: {AutoConfig: hostile.Config, AutoModelForCausalLM: hostile.Model}}}]\n",
    "a source in a wheel that leads out": _HEAD.replace("path:model", "'wheel:x==1!../../../../outside/'"),
    "a source that is a device": _HEAD.replace("path:model", "path:/dev/zero"),
    "a source that is /proc": _HEAD.replace("path:model", "path:/proc/self/environ"),
    "a source with NUL": _HEAD.replace("path:model", '"path:a\\0b"'),
    "a source of an option": _HEAD.replace("path:model", "'wheel:-r==1!x/'"),
    "calibration from a folder": _HEAD + "calibration: {source: path:model}\nvariants: [{prune: wanda, sparsity: 0.5}]\n",
}  # fmt: skip


@case("a manifest of", _ENTRIES)
def entry(box: Box, content: str) -> Iterator[Step]:
    box.model()
    path = box.input / "hostile.yaml"
    path.write_text(content.replace("SECRET", str(box.canary)).replace("MARKER", str(box.marker)))
    yield box.do("plan", path, "--ledger", box.out / "ledger.duckdb")


_PLACES = {
    "a work_dir that is a file": "work_dir: INPUT/hostile.yaml\n",
    "a work_dir that is a device": "work_dir: /dev/null/x\n",
    "a work_dir with NUL": 'work_dir: "a\\0b"\n',
    "a work_dir of an unknown person": "work_dir: ~nobody-of-that-name/x\n",
    "a work_dir below /proc": "work_dir: /proc/self/hostile\n",
    "a ledger that is a folder": "ledger: INPUT\n",
    "a ledger that is a device": "ledger: /dev/null\n",
    "a ledger below a file": "ledger: INPUT/hostile.yaml/ledger.duckdb\n",
    "a ledger that is a text": "ledger: INPUT/hostile.yaml\n",
    "a ledger of an unknown person": "ledger: ~nobody-of-that-name/ledger.duckdb\n",
    "a ledger of a long name": f"ledger: OUT/{'n' * 300}.duckdb\n",
    "a ledger with NUL": 'ledger: "a\\0b.duckdb"\n',
    "its own name leading out": f"name: {UP}/../outside/planted\nledger: OUT/ledger.duckdb\n",
}


@case("a run with", _PLACES)
def place(box: Box, line: str) -> Iterator[Step]:
    box.model()
    path = box.input / "hostile.yaml"
    path.write_text(MANIFEST + line.replace("INPUT", str(box.input)).replace("OUT", str(box.out)))
    yield box.do("run", path)
    yield box.do("status", path)


@case("a lock beside a manifest", {
    "nested 100,000 deep": b"[" * 100_000, "a list": b"[1]", "of numbers": b'{"hf:a/b@main": 5}', "a link": None,
    "that leads out": b'{"hf:a/b@main": "../../../../outside"}',
})  # fmt: skip
def lock(box: Box, content: bytes | None) -> Iterator[Step]:
    path = box.input / "hostile.yaml"
    path.write_text(_HEAD.replace("path:model", "hf:a/b@main"))
    for name in ("hostile.yaml.lock", "hostile.lock"):
        if content is None:
            (box.input / name).symlink_to(box.kept)
        else:
            (box.input / name).write_bytes(content)
    box.environment["HF_HUB_OFFLINE"] = "1"
    yield box.do("plan", path, "--offline", "--ledger", box.out / "ledger.duckdb")
