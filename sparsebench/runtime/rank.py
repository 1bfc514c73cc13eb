"""One rank's process, ``python -m sparsebench.runtime.rank SPEC.json RANK``, started by ``launch.NodeRanks``."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sparsebench import bounded, children, devices, energy, errors
from sparsebench.children import apart, die_with_parent
from sparsebench.errors import MeasureError, SparsebenchError, UnsupportedError, out_of_memory, redact_stderr
from sparsebench.runtime import failures, graphs, latency, machine, memory, watch
from sparsebench.runtime.engines import check_gpu, engine, engines
from sparsebench.runtime.engines.base import Engine, SavedModel
from sparsebench.runtime.latency import LoadedModel, Peers
from sparsebench.runtime.launch import CHANNEL, PARENT
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.results import Setting, Side
from sparsebench.runtime.workload import Prompt, inputs, phases

NO_METER = "none: the ranks are on several nodes"
RANKS = "measure fewer ranks, or on a machine with more GPUs"


class Channel:
    """The rank's end of its socket: writes JSON lines, and reads one byte after a message that waits for the parent."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # a compiler that outlives the rank must not keep the channel open
        self.descriptor = descriptor

    def send(self, kind: str, wait: bool = False, **content: Any) -> None:
        """Send one message; with ``wait``, return only when the parent has dealt with it.

        Raises SystemExit where the parent is gone before that.
        """
        line = json.dumps({"kind": kind, "wait": wait, **content}).encode() + b"\n"
        while line:
            line = line[os.write(self.descriptor, line) :]
        if wait and not os.read(self.descriptor, 1):
            raise SystemExit("the parent is gone")


class RankWorker:
    """A rank's engine and setting, and the jobs that it can do."""

    def __init__(self, spec: Mapping[str, Any], rank: int, channel: Channel) -> None:
        self.family: str = spec["family"]
        self.setting = Setting.of_json(spec["setting"])
        self.rank, self.channel = rank, channel
        self.engine: Engine = engine(self.setting.engine)
        if self.setting.forced:
            self.engine.forced = True

    def imports(self, folder: Path) -> None:
        """Import heavy libraries and what transformers imports for this model, so that neither counts as loading."""
        from sparsebench.models.modules.build import meta_model

        for name in engines()[self.setting.engine].imports:
            importlib.import_module(name)
        self.config = bounded.read_object(folder / "config.json")
        meta_model(self.family, self.config)  # type: ignore[arg-type]

    def start(self, folder: Path) -> None:
        """Import libraries, take the device, join the group of ranks and set up the energy meter."""
        import torch

        self.imports(folder)
        # With one thread too many, two ranks spin against each other: ten times slower and more, without any message.
        torch.set_num_threads(threads_per_rank(self.setting))
        self.take_device()
        cuda = devices.is_gpu(self.device)
        self.notes = self.engine.start(self.rank, self.setting.ranks)
        if self.setting.nodes:
            self.notes = (*self.notes, f"ranks on {', '.join(self.setting.nodes)}")
        self.peers = Peers(self.setting.ranks, cuda)
        # Energy counters belong to the machine: one rank reads them.
        reads = self.rank == 0 and not self.setting.nodes
        nothing = energy.EnergyMeter(energy.NoMeter("" if self.rank else NO_METER))
        self.meter = energy.meter(self.device, self.setting.ranks) if reads else nothing
        memory.settle_allocator()
        gc.collect()
        gc.freeze()  # the libraries' objects stay: collections between phases need not visit them

    def take_device(self) -> None:
        """Choose this rank's device before the group joins: the GPU with its local rank's number, else the CPU.

        Raises UnsupportedError where there are too few GPUs, the engine runs on a CPU only, or torch does not see the GPU
        that was asked for.
        """
        import torch

        local, here = int(os.environ["LOCAL_RANK"]), self.setting.ranks_per_node
        self.device = "cpu"
        if self.setting.device == "cpu":
            return
        if torch.cuda.is_available():
            check_gpu(self.setting.engine)
            if (seen := torch.cuda.device_count()) < here:
                raise UnsupportedError(f"{here} ranks need {here} GPUs, but torch sees {seen}", RANKS)
            torch.cuda.set_device(local)
            self.device = f"cuda:{local}"
        elif self.setting.on_gpu:
            raise UnsupportedError(
                f"device {self.setting.device}: torch sees no GPU in rank {self.rank}",
                "see why: sparsebench doctor; or say `device: cpu`",
            )

    def prompt(self, folder: Path) -> Prompt:
        """Return the workload's inputs on this rank's device, in the vocabulary of the model in ``folder``."""
        config = bounded.read_object(folder / "config.json")
        return inputs(config, self.setting.workload, self.setting.seed, self.device)

    def load(self, folder: Path, baseline: bool = False) -> Any:
        """Load the model with the engine and copy its tensors out of the mapped file (``memory.own``).

        Its tensors are ordinary ones, as a user's are, also where this is called in inference mode.
        """
        import torch

        work = self.setting.workload
        source = SavedModel(folder, self.family, self.setting.dtype)
        with torch.inference_mode(mode=False), torch.no_grad():
            wrapped = self.engine.load(source, work.prompt + work.generate, baseline)
            memory.own(wrapped.module)
        self.dtype = str(wrapped.module.dtype).removeprefix("torch.")
        return wrapped

    def parity(self, folder: Path) -> dict[str, Any] | None:
        """Measure how far the engine's output is from the plain model's, on a shortened copy of this folder's model."""
        found = self.engine.parity(SavedModel(folder, self.family, self.setting.dtype), self.prompt(folder))
        gc.collect()
        self._progress()
        return asdict(found) if found else None

    def facts(self, variant: str = "", dense: str = "") -> dict[str, Any]:
        """Return the fields of every result; ``variant`` and ``dense`` are what ``graphs.told`` says of each side."""
        import torch

        unlike = [f"dense model, {dense}"] if dense and dense != variant else []
        return {
            "threads": torch.get_num_threads(),
            "kernel": "; ".join(filter(None, (self.engine.kernel, variant))),
            "device": self.device.split(":")[0],
            "dtype": self.dtype,
            "notes": (*self.notes, *self._clocks(), *unlike),
        }

    def _clocks(self) -> tuple[str, ...]:
        """Return a note on the clocks of this node's GPUs, where NVML tells them; only rank 0 does."""
        if self.rank or not devices.is_gpu(self.device):
            return ()
        return tuple(filter(None, [machine.gpu_state(range(self.setting.ranks_per_node))]))

    def latency(self, dense: Path | None, variants: list[tuple[int, Path]], baseline: bool, process: int) -> None:
        """Time ``dense`` beside each variant in turn; where it is None, each variant alone, as a ``baseline`` or not.

        This is one ``process`` of several; the first compares the variants' outputs with the plain model's.
        """
        import torch

        first = dense or variants[0][1]
        self.start(first)
        with torch.inference_mode():
            models: dict[Side, Any] = {}
            sides: dict[Side, LoadedModel] = {}
            if dense:
                models["dense"], sides["dense"] = self._timed_load(dense, baseline=True)
            for index, folder in variants:
                parity = None if baseline or process else self.parity(folder)
                models["variant"], sides["variant"] = self._timed_load(folder, baseline)
                for model in models.values():
                    # Copied again: what a process loads first is laid out otherwise, and was seen up to 10% slower.
                    memory.own(model.module)
                graphs.make_alike(one.phases for one in sides.values())
                samples, settled, spent = latency.run(
                    sides, self.setting, self.peers, self._progress, self.meter, process
                )
                if self.rank == 0:
                    self.channel.send(
                        "result",
                        True,
                        index=index,
                        process=process,
                        samples=[asdict(sample) for sample in samples],
                        steady=settled,
                        energy=[(*key, joules) for key, joules in spent.items()],
                        energy_source=self.meter.source,
                        parity=parity,
                        **self.facts(**{side: graphs.told(one.phases) for side, one in sides.items()}),
                    )
                del sides["variant"], models["variant"], model
                gc.collect()

    def memory(self, folder: Path) -> None:
        """Measure the peak memory of one model alone, phase by phase."""
        import torch

        self.start(folder)
        with torch.inference_mode():
            meter = memory.Meter(self.rank, self.device)
            with meter.phase("load"):
                model = self.load(folder)
                meter.tensors = memory.tensor_bytes(model)
            self._progress()
            work = self.setting.workload
            for phase in phases(model, self.family, self.prompt(folder), work.generate, keep_cache=False):
                self.peers.barrier()
                with meter.phase(phase.name, partial(getattr, phase, "cache")):
                    phase.begin()
                    for _ in range(work.generate if phase.name == "decode" else 1):
                        phase.step()
                phase.end()
                self._progress()
            facts = self.facts()
            del model, phase
            gc.collect()
            # Parity comes last: its leftover heap would count as baseline, and a model that fills that heap as nothing.
            parity = self.parity(folder)
        rows = [asdict(row) for row in meter.rows]
        self.channel.send("result", True, rows=rows, parity=parity, source=meter.source, **facts)

    def add_up(self) -> None:
        """Join the group, add up one number per rank, and send on which GPU that was done.

        Raises MeasureError where the sum is wrong.
        """
        import torch
        from deepspeed import comm

        self.take_device()
        notes = self.engine.start(self.rank, self.setting.ranks)
        total = torch.full((1024,), float(self.rank + 1), device=self.device)  # NCCL does not accept CPU tensors
        comm.inference_all_reduce(total)  # what sharded layers call; it uses shared memory where that is on
        expected = sum(range(1, self.setting.ranks + 1))
        if not bool((total == expected).all()):
            raise MeasureError(f"{self.setting.ranks} ranks add up to {float(total[0])} where {expected} is right")
        gpu = str(torch.cuda.get_device_properties(self.device).uuid) if devices.is_gpu(self.device) else ""
        self.channel.send("result", notes=notes, gpu=gpu)

    def _timed_load(self, folder: Path, baseline: bool = False) -> tuple[Any, LoadedModel]:
        """Load a model; return it with its phases and the time and energy of loading."""
        self.meter.joules()
        model, sample = self.peers.timed(lambda: self.load(folder, baseline))
        joules = self.meter.joules()
        self._progress()
        tokens = self.setting.workload.generate
        made = phases(model, self.family, self.prompt(folder), tokens)
        if devices.is_gpu(self.device):
            made = graphs.recorded(made, tokens, self.setting.ranks)
        return model, LoadedModel(made, sample, joules)

    def _progress(self) -> None:
        """Tell the parent that something was done: a group that is silent for too long is ended."""
        self.channel.send("progress")


def work(channel: Channel, spec: Mapping[str, Any], rank: int) -> int:
    """Do the spec's job once for each of its ``processes``, several of them each in a fork; return the exit code."""
    job = RankWorker(spec, rank, channel)
    processes = spec.get("processes", [0])
    if len(processes) == 1:
        return attempt(job, lambda: do(job, spec, processes[0]))
    if code := attempt(job, lambda: job.imports(Path(spec["variants"][0][1]))):
        return code
    for process, port in zip(processes, spec["ports"], strict=True):
        watch.answer()  # this process only relays requests to the last fork, and a fork must not inherit that
        os.environ["MASTER_PORT"] = port
        if code := apart(partial(attempt, job, partial(do, job, spec, process)), watch.relay):
            return code
    return 0


def do(job: RankWorker, spec: Mapping[str, Any], process: int) -> None:
    """Do the job that the spec names, as number ``process``."""
    if spec["job"] == "try":
        job.add_up()
    elif spec["job"] == "memory":
        job.memory(Path(spec["folder"]))
    else:
        dense = Path(spec["dense"]) if spec["dense"] else None
        variants = [(index, Path(folder)) for index, folder in spec["variants"]]
        job.latency(dense, variants, spec["baseline"], process)


def attempt(job: RankWorker, call: Callable[[], None]) -> int:
    """Call; return the exit code. A known error is sent to the parent; any other is raised, for the log."""
    named = f"rank {job.rank} of {job.setting.ranks}"
    try:
        call()
    except SparsebenchError as error:
        job.channel.send("error", type=_known(error), message=error.message, hint=error.hint)
        return 3
    except (MemoryError, RuntimeError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if out_of_memory(error):
            # In main memory every rank adds a copy of what is not shared; a GPU holds only its own rank's share.
            hint = "use a smaller dtype, fewer ranks, or a larger machine"
            if failures.on_gpu(error):
                hint = "use a smaller dtype, more ranks, the deepspeed-zero3 engine, or a GPU with more memory"
            job.channel.send("error", type="MeasureError", message=f"{named} ran out of memory: {first}", hint=hint)
        elif failures.echo(error):
            message = f"{named} lost another rank: {first}"
            job.channel.send("error", type="MeasureError", message=message, hint=None, echo=True)
        else:
            raise
        traceback.print_exc()
        return 3
    return 0


def _known(error: SparsebenchError) -> str:
    """Return the name of the nearest class of an error that the parent knows: a plugin may have a class of its own."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def main(arguments: Sequence[str]) -> int:
    """Run a rank; ``arguments`` are SPEC.json and its number."""
    redact_stderr()
    spec, rank = arguments
    die_with_parent(int(os.environ[PARENT]))
    watch.answer()
    return work(Channel(int(os.environ[CHANNEL])), json.loads(Path(spec).read_text()), int(rank))


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    except BaseException:  # the worker's boundary: the parent shows the end of this log
        traceback.print_exc()
    finally:
        # A regular interpreter shutdown sometimes aborts under gloo's threads, and frees gigabytes slowly.
        children.leave(code)
