"""Changes to a harmless input: of its bytes, of its lines, of a value somewhere in a JSON tree."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0",
    "x", "\ud800", "\0", "../x", "x" * 300, "a b", "é→✓", "-- x", "2026-13-45", [], {}, [None], ["x"], [[1]], {"x": 1}, [0, 1, 2],
)  # fmt: skip
"""Values that nobody expects where they come to stand."""
_BYTES = (
    b"\0",
    b"\xff",
    b"\xff" * 8,
    b"\0" * 8,
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\n",
    b":",
    b"-",
    b"9" * 30,
)
_WORDS = (
    "", "null", "~", "-1", "0", "1e400", ".nan", "[]", "{}", "[", "}", ": ", "- ", "# ", "&a ", "*a", "!x ", '"\\ud800"', "'",
    "\t", "x" * 300, "é→✓", "\u2028", "select", "from", "(", ")", ";", "--", "/*", "$\\bad$", "[1, 2]", "interval 1 day",
    "170141183460469231731687303715884105727", "'nan'::double", "null::varchar", "limit 0",
)  # fmt: skip


def data(given: bytes, random: Random) -> bytes:
    """Some bytes flipped, replaced, taken out, doubled or cut off."""
    found = bytearray(given)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(found) + 1)
        size = min(random.choice((1, 1, 2, 8, 64)), len(found) - at)
        match random.randrange(6):
            case 0 if size:
                found[at] ^= 1 << random.randrange(8)
            case 1:
                found[at : at + size] = random.choice(_BYTES)
            case 2:
                del found[at : at + size]
            case 3:
                found[at:at] = found[at : at + size]
            case 4 if random.random() < 0.3:
                del found[at:]
            case _ if size:
                found[at : at + size] = random.randbytes(size)
    return bytes(found)


def text(given: str, random: Random) -> bytes:
    """Some lines or words changed, or some bytes."""
    if random.random() < 0.2:
        return data(given.encode(), random)
    lines = given.split("\n")
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(len(lines))
        line, odd = lines[at], random.choice(_WORDS)
        place = random.randrange(len(line) + 1)
        match random.randrange(7):
            case 0:
                del lines[at : at + 1]
                lines = lines or [""]
            case 1:
                lines.insert(at, random.choice(lines))
            case 2:
                head, colon, _ = line.partition(":")
                lines[at] = f"{head}{colon} {odd}"
            case 3:
                words = line.split(" ")
                words[random.randrange(len(words))] = odd
                lines[at] = " ".join(words)
            case 4:
                lines[at] = line[:place] + odd + line[place:]
            case 5:
                lines[at] = line[:place]
            case 6:
                lines[at] = " " * random.randrange(6) + line.lstrip()
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def tree(given: Any, random: Random) -> Any:
    """A copy of a JSON value in which some values, keys or items are changed, gone or doubled."""
    whole = [copy.deepcopy(given)]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        holder: Any = whole
        key: Any = 0
        # Down to some depth: what is near the top is met as often as what is far below.
        while isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.8:
            holder = holder[key]
            key = random.choice(list(holder)) if isinstance(holder, dict) else random.randrange(len(holder))
        match random.randrange(6):
            case 0 if holder is not whole:
                del holder[key]
            case 1 if isinstance(holder, dict):
                name = random.choice(("", "x", "\ud800", "__metadata__", "é", "x" * 300))
                holder[name] = holder.pop(key)
            case 2 if isinstance(holder, list) and holder is not whole:
                holder.insert(key, copy.deepcopy(holder[key]))
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = random.choice(
                    (holder[key] + 1, -holder[key], holder[key] * 2, holder[key] / 2, str(holder[key]))
                )
            case 4:
                holder[key] = [holder[key]]
            case _:
                holder[key] = copy.deepcopy(random.choice(ODD))
    return whole[0]


def record(given: Any, random: Random) -> bytes:
    """A JSON text, mostly of a changed tree."""
    if random.random() < 0.15:
        return data(json.dumps(given).encode(), random)
    return json.dumps(tree(given, random)).encode()


def container(given: bytes, random: Random) -> bytes:
    """A safetensors file: its header changed as a tree, or bytes anywhere."""
    size = struct.unpack("<Q", given[:8])[0]
    if random.random() < 0.25:
        return given[: 8 + size] + data(given[8 + size :], random)[: len(given) - 8 - size]
    if random.random() < 0.3:
        return data(given[: 8 + size], random) + given[8 + size :] if random.random() < 0.7 else data(given, random)
    header = json.loads(given[8 : 8 + size])
    kept = header.get("__metadata__", {}).get("tensors")
    if kept and random.random() < 0.5:  # of a packed file: JSON within the JSON
        header["__metadata__"]["tensors"] = json.dumps(tree(json.loads(kept), random))
    else:
        header = tree(header, random)
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    body = given[8 + size :] if random.random() < 0.8 else data(given[8 + size :], random)
    return struct.pack("<Q", len(told)) + told + body
