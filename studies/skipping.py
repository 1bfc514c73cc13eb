"""What computing with some of the weights costs in perplexity, and what it saves in decoding, on one decoder.

    python studies/skipping.py quality [FOLDER] [--step 'skip: teal, share: 0.4' …] [--windows 8] [--length 512] [--samples 16]
    python studies/skipping.py partition [FOLDER] [--windows 8] [--length 512] [--samples 16]
    python studies/skipping.py decode [FOLDER | --layers 16] [--step …] [--threads 1] [--rounds 10]
    python studies/skipping.py product [--threads 1] [--rounds 10]
    python studies/skipping.py overhead [FOLDER | --layers 16] [--step …] [--threads 1] [--rounds 30]

FOLDER is a decoder (default: SmolLM2-135M; with --layers a random one of the 1B shape). Calibration text is the
program's own default. `quality` gives perplexity over the first windows of the task `perplexity`'s text, over the dense
model's; `partition` the same of both ways to cut the graph of co-activation, of which METIS needs `sparsebench[moefy]`.
`decode` is the median CPU time per token beside the dense model in turns, in bfloat16. `product` is the median CPU time of
one layer of the 1B shape for a few tokens by torch's dense kernel, the bitmask kernel of the sparse engine, and the skip
engine's, whose bytes over the dense ones are counted as it runs. `overhead` is what comparing with thresholds, or a router, takes
of decoding a token, in bfloat16: steps that skip nothing beside the same kernels, in the same memory, that compare nothing and
read all. A pair is one turn of each, in alternating order; the ratio is the median of the pairs' with its distribution-free 95%
interval (the range, of fewer than six). All print Markdown as they go.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

QUALITY = [
    *[f"skip: teal, share: {share}" for share in (0.25, 0.4, 0.5)],
    *[f"skip: cats, share: {share}" for share in (0.3, 0.5, 0.7)],
    *[f"moefy: random, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative")],
    *[f"moefy: kmeans, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative")],
    *[
        f"moefy: coactivation, active: 0.5, router: {router}"
        for router in ("oracle", "centroid", "representative", "learned")
    ],
    *[f"moefy: cmoe, active: 0.5, router: {router}" for router in ("oracle", "centroid", "representative", "learned")],
]
PARTITION = [
    f"moefy: coactivation, partition: {partition}, active: {active}, router: {router}"
    for partition in ("balanced", "metis")
    for router in ("oracle", "learned")
    for active in (0.25, 0.5)
]

DECODE = ["skip: teal, share: 0.0", "skip: teal, share: 0.4", "skip: teal, share: 0.5", "skip: cats, share: 0.5"]

OVERHEAD = [
    "skip: teal, share: 0.0",
    "skip: cats, share: 0.0",
    *[f"moefy: random, active: 1.0, router: {router}" for router in ("centroid", "representative", "learned")],
]


def steps(written: list[str]) -> dict[str, Any]:
    """Steps as a manifest writes them."""
    import yaml

    from sparsebench.steps.registry import single

    found = {}
    for text in written:
        (verb, name), *rest = yaml.safe_load("{" + text + "}").items()
        found[text] = single(verb, name, **dict(rest))
    return found


def made(parent: Path, targets: dict[Any, Path], text: Any) -> dict[Any, Any]:
    """Make folders, those that share a pass together; each step's evidence."""
    from sparsebench.steps.contract import Context
    from sparsebench.steps.registry import kinds

    told: dict[Any, Any] = {}
    passes: dict[Any, dict[Any, Path]] = {}
    for step, folder in targets.items():
        passes.setdefault((step.verb, kinds()[step.verb].shares(step)), {})[step] = folder
    for (verb, _), own in passes.items():
        kinds()[verb].load()(parent, own, Context("decoder", 0, "float32", lambda: text), told.__setitem__)
    for found in told.values():
        if isinstance(found, Exception):
            raise found
    return told


def quality(given: argparse.Namespace, folder: Path, work: Path) -> None:
    """Perplexity of each step over the dense model's."""
    from shrink import calibration, scored

    text, dense = calibration(folder, given.samples, given.length), scored(folder, None, given)
    print(f"| step | perplexity / {dense:.3f} | pass, s | note |\n|---|---|---|---|", flush=True)
    chosen = steps(given.step or (PARTITION if given.what == "partition" else QUALITY))
    folders = {step: work / str(number) for number, step in enumerate(chosen.values())}
    found = made(folder, folders, text)
    for words, step in chosen.items():
        ratio, own = scored(folders[step], None, given) / dense, found[step]
        print(f"| {words} | {ratio:.3f} | {own.seconds:.0f} | {own.note} |", flush=True)


def decode(given: argparse.Namespace, folder: Path, work: Path) -> None:
    """Milliseconds of a token, beside dense."""
    import torch
    from decode import Runner
    from shrink import calibration

    from sparsebench.runtime.engines.base import SavedModel

    torch.set_num_threads(given.threads)
    text = drawn(folder, given) if given.layers else calibration(folder, given.samples, given.length)
    print("| step | dense ms | ms | × dense | prefill × dense | kernel |\n|---|---|---|---|---|---|", flush=True)
    with torch.inference_mode():
        dense = Runner("hf", SavedModel(folder, "decoder", "bfloat16"))
        for number, (words, step) in enumerate(steps(given.step or DECODE).items()):
            made(folder, {step: work / str(number)}, text)
            own = Runner("skip", SavedModel(work / str(number), "decoder", "bfloat16"))
            for _ in range(given.rounds):
                dense.turn()
                own.turn()
            one, other = median(dense.times) * 1e3, median(own.times) * 1e3
            first = median(dense.prefills) / median(own.prefills)
            print(
                f"| {words} | {one:.2f} | {other:.2f} | {one / other:.2f} | {first:.2f} | {own.engine.kernel} |",
                flush=True,
            )
            dense.times.clear()
            dense.prefills.clear()
            del own
            gc.collect()


COPIES = 4
"""Of each matrix, 32 MB of bfloat16, so that it is read from memory."""


def product(given: argparse.Namespace) -> None:
    """Milliseconds of one layer, by its zeros, the share skipped and the tokens at once."""
    import torch
    from decode import seconds

    from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels, kernels
    from sparsebench.runtime.kernels.matrix import to_bitmask
    from sparsebench.runtime.kernels.skipping import SkipColumns

    found = kernels()
    assert isinstance(found, Kernels), found
    torch.set_num_threads(given.threads)
    print("| layer | zeros | skipped | tokens | dense ms | sparse ms | skip ms | bytes / dense |\n" + "|---" * 8 + "|")
    draw = torch.Generator().manual_seed(0)
    for (ins, outs), zeros in [(shape, zeros) for shape in ((2048, 8192), (8192, 2048)) for zeros in (0.0, 0.5, 0.8)]:
        weight = torch.randn(outs, ins, generator=draw) * (torch.rand(outs, ins, generator=draw) >= zeros)
        dense = [weight.bfloat16() for _ in range(COPIES)]
        sparse = [KernelLinear(found, to_bitmask(one), Autotuner()) for one in dense]
        skip = [SkipColumns(found, one.T.contiguous(), None, 0.0) for one in dense]
        layers: dict[str, list[Any]] = {
            "dense": [partial(lambda own, x: torch.nn.functional.linear(x, own), one) for one in dense],
            "sparse": [one.by_kernel for one in sparse],
            "skip": skip,
        }
        for share, tokens in [(0.0, 1), *[(0.5, tokens) for tokens in (1, 2, 4, 8, 16)]]:
            x = torch.randn(tokens, ins, generator=draw).bfloat16()
            limit = float(x.abs().float().quantile(share)) if share else 0.0
            times: dict[str, list[float]] = {name: [] for name in layers}
            for one in skip:
                one.limit = limit
            # Of this share alone.
            skip[0].tally.products.clear()
            skip[0].tally.bytes.clear()
            for _ in range(given.rounds):
                for name, own in layers.items():
                    times[name].append(seconds(partial(one_after_another, own, x)))
            took = " | ".join(f"{median(each) / COPIES * 1e3:.2f}" for each in times.values())
            read = skip[0].tally.product(tokens)[2] / dense[0].nbytes
            print(f"| {ins} → {outs} | {zeros:.0%} | {share:.0%} | {tokens} | {took} | {read:.0%} |", flush=True)


def one_after_another(layers: list[Any], x: Any) -> None:
    """The same token through each."""
    for layer in layers:
        layer(x)


class Switch:
    """What a loaded model compares and chooses, on or off; off, the same kernels read everything."""

    def __init__(self, model: Any) -> None:
        from sparsebench.runtime.kernels.skipping import Skipping, ThresholdedActivation

        modules = dict(model.named_modules())
        self.model = model
        self.layers = [one for one in modules.values() if isinstance(one, Skipping)]
        self.deciding = {path: one for path, one in modules.items() if isinstance(one, ThresholdedActivation)}
        # What masks neurons and tells a router what it reads.
        self.hooks = [(one._forward_pre_hooks, dict(one._forward_pre_hooks)) for one in self.layers]

    def turn(self, on: bool) -> None:
        """Off to on, or back."""
        for layer in self.layers:
            layer.reads_all = not on
        for path, one in self.deciding.items():
            self.model.set_submodule(path, one if on else one.function)
        for hooks, own in self.hooks:
            hooks.clear()
            hooks.update(own if on else {})


def overhead(given: argparse.Namespace, folder: Path, work: Path) -> None:
    """What steps that skip nothing take of a token's time."""
    import torch
    from decode import BLOCK, Runner, seconds
    from shrink import calibration

    from sparsebench.runtime.engines.base import SavedModel

    torch.set_num_threads(given.threads)
    text = drawn(folder, given) if given.layers else calibration(folder, given.samples, given.length)
    print(
        "| step | without ms | with ms | ratio (95% interval) | share of the step | kernel |\n|---|---|---|---|---|---|"
    )
    for number, (words, step) in enumerate(steps(given.step or OVERHEAD).items()):
        made(folder, {step: work / str(number)}, text)
        with torch.inference_mode():
            own = Runner("skip", SavedModel(work / str(number), "decoder", "bfloat16"))
            switch, times = Switch(own.model.module), {True: [], False: []}
            for pair in range(given.rounds + 1):
                for on in (pair % 2 == 0, pair % 2 == 1):
                    switch.turn(on)
                    own.decode.begin()
                    took = median(seconds(own.decode.step) for _ in range(BLOCK))
                    if pair:  # the first warms up
                        times[on].append(took)
        ratio, low, high = middle([one / other for one, other in zip(times[True], times[False], strict=True)])
        without, with_ = (f"{median(times[on]) * 1e3:.2f}" for on in (False, True))
        said = f"{ratio:.3f} ({low:.3f} to {high:.3f}) | {1 - 1 / ratio:.1%}"
        print(f"| {words} | {without} | {with_} | {said} | {own.engine.kernel} |", flush=True)
        del own, switch
        gc.collect()


def middle(values: list[float]) -> tuple[float, float, float]:
    """The median, and the two values between which it lies with 95% confidence whatever the distribution."""
    from scipy.stats import binom

    ordered, place = sorted(values), max(int(binom.ppf(0.025, len(values), 0.5)), 1)
    return median(ordered), ordered[place - 1], ordered[-place]


def drawn(folder: Path, given: argparse.Namespace) -> Any:
    """Random tokens, for a model that has no tokenizer."""
    import torch

    from sparsebench.models.replay.batch import Batch
    from sparsebench.steps.calibration import Calibrated

    ids = torch.randint(3, 1000, (given.samples, 64), generator=torch.Generator().manual_seed(0))
    return Calibrated(Batch(ids, torch.ones_like(ids, dtype=torch.bool)), "", "", ids.numel(), ())


def model(given: argparse.Namespace, work: Path) -> Path:
    """The dense model."""
    if given.folder:
        return Path(given.folder)
    from decode import ONE_BILLION, SMOLLM2

    from sparsebench import sources
    from sparsebench.models.prepare import prepare
    from sparsebench.models.random_weights import write_random

    if given.layers:
        return write_random({**ONE_BILLION, "num_hidden_layers": given.layers}, work / "dense", "decoder", "bfloat16")
    prepare(sources.fetch(sources.parse(SMOLLM2), sources.Cache()), work / "dense", "decoder", "bfloat16")
    return work / "dense"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "partition", "product", "decode", "overhead"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--step", action="append")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    if given.what == "product":
        return product(given)
    with tempfile.TemporaryDirectory(prefix="skipping-") as work:
        {"quality": quality, "partition": quality, "decode": decode, "overhead": overhead}[given.what](
            given, model(given, Path(work)), Path(work)
        )


if __name__ == "__main__":
    main()
