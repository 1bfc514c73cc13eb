"""What a rank does for its job: times models, measures their memory, or adds up one tensor with the others."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench import bounded, devices, energy
from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.modules.build import meta_model
from sparsebench.runtime import graphs, latency, machine, memory
from sparsebench.runtime.channel import Channel
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import Engine, SavedModel
from sparsebench.runtime.latency import LoadedModel, Peers
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.refusals import rank_refusal
from sparsebench.runtime.results import Setting, Side
from sparsebench.runtime.workload import Prompt, inputs, phases

NO_METER = "none: the ranks are on several nodes"


class RankWorker:
    """A rank's engine and setting, and the jobs that it can do."""

    def __init__(self, spec: Mapping[str, Any], rank: int, channel: Channel) -> None:
        self.spec, self.family = spec, spec["family"]
        self.setting = Setting.of_json(spec["setting"])
        self.rank, self.channel = rank, channel
        self.engine: Engine = engine(self.setting.engine)
        if self.setting.forced:
            self.engine.forced = True

    def do(self, process: int) -> None:
        """Do the job that the spec names, as number ``process``."""
        match self.spec["job"]:
            case "try":
                self.add_up()
            case "memory":
                self.memory(Path(self.spec["folder"]))
            case "latency":
                self.latency(process)
            case unknown:
                raise ValueError(f"no rank does {unknown!r}")

    def import_model(self) -> None:
        """Import what transformers imports for the job's first model, so that this does not count as loading.

        Some engines write files of their own from the models' folders: they do so here, too.
        """
        meta_model(self.family, self._config(self._folders()[0]))
        if prepare := getattr(self.engine, "prepare", None):
            prepare([SavedModel(folder, self.family, self.setting.dtype) for folder in self._folders()])

    def start(self) -> None:
        """Import libraries, take the device, join the group of ranks and set up the energy meter."""
        self.import_model()
        # With one thread too many, two ranks spin against each other: ten times slower and more, without any message.
        torch.set_num_threads(threads_per_rank(self.setting))
        self.take_device()
        self.notes = self.engine.start(self.rank, self.setting.ranks)
        if self.setting.nodes:
            self.notes = (*self.notes, f"ranks on {', '.join(self.setting.nodes)}")
        self.peers = Peers(self.setting.ranks, devices.is_gpu(self.device))
        # Energy counters belong to the machine: one rank reads them.
        if self.rank == 0 and not self.setting.nodes:
            self.meter = energy.meter(self.device, self.setting.ranks)
        else:
            self.meter = energy.EnergyMeter(energy.NoMeter("" if self.rank else NO_METER))
        memory.settle_allocator()
        gc.collect()
        gc.freeze()  # the libraries' objects stay: collections between phases need not visit them

    def take_device(self) -> None:
        """Choose this rank's device before the group joins: the GPU with its local rank's number, else the CPU.

        Raises UnsupportedError where there are too few GPUs, the engine runs on a CPU only, or torch does not see the GPU
        that was asked for.
        """
        self.device = "cpu"
        if self.setting.device == "cpu":
            return
        if torch.cuda.is_available():
            if refusal := rank_refusal(self.setting, torch.cuda.device_count(), "torch"):
                raise refusal.error()
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(self.device)
        elif self.setting.on_gpu:
            raise UnsupportedError(
                f"device {self.setting.device}: torch sees no GPU in rank {self.rank}",
                "see why: sparsebench doctor; or say `device: cpu`",
            )

    def prompt(self, folder: Path) -> Prompt:
        """Return the workload's inputs on this rank's device, in the vocabulary of the model in ``folder``."""
        return inputs(self._config(folder), self.setting.workload, self.device)

    def load(self, folder: Path, baseline: bool = False) -> Any:
        """Load the model with the engine and copy its tensors out of the mapped file (``memory.copy_out``).

        Its tensors are ordinary ones, as a user's are, also where this is called in inference mode.
        """
        workload = self.setting.workload
        source = SavedModel(folder, self.family, self.setting.dtype)
        with torch.inference_mode(mode=False), torch.no_grad():
            wrapped = self.engine.load(source, workload.prompt + workload.generate, baseline)
            memory.copy_out(wrapped.module)
        self.dtype = str(wrapped.module.dtype).removeprefix("torch.")
        return wrapped

    def parity(self, folder: Path) -> dict[str, Any] | None:
        """Measure how far the engine's output is from the plain model's, on a shortened copy of this folder's model."""
        parity = self.engine.parity(SavedModel(folder, self.family, self.setting.dtype), self.prompt(folder))
        gc.collect()
        self._progress("parity")
        return asdict(parity) if parity else None

    def facts(self, variant: str = "", dense: str = "") -> dict[str, Any]:
        """Return the fields of every result; ``variant`` and ``dense`` say how each side decodes."""
        notes = [*self.notes]
        if self.rank == 0 and devices.is_gpu(self.device):
            notes += filter(None, [machine.gpu_state(range(self.setting.ranks_per_node))])
        if dense and dense != variant:
            notes.append(f"dense model, {dense}")
        return {
            "threads": torch.get_num_threads(),
            "kernel": "; ".join(filter(None, (self.engine.kernel, variant))),
            "device": self.device.split(":")[0],
            "dtype": self.dtype,
            "notes": notes,
        }

    def latency(self, process: int) -> None:
        """Time the dense model beside each variant in turn; where there is none, each variant alone.

        This is one ``process`` of several; the first compares the variants' outputs with the plain model's.
        """
        self.start()
        baseline: bool = self.spec["baseline"]
        with torch.inference_mode():
            models: dict[Side, Any] = {}
            sides: dict[Side, LoadedModel] = {}
            if self.spec["dense"]:
                models["dense"], sides["dense"] = self._timed_load(Path(self.spec["dense"]), baseline=True)
            for index, name in enumerate(self.spec["variants"]):
                parity = None if baseline or process else self.parity(Path(name))
                models["variant"], sides["variant"] = self._timed_load(Path(name), baseline)
                for model in models.values():
                    # Copied again: what a process loads first is laid out otherwise, and was seen up to 10% slower.
                    memory.copy_out(model.module)
                graphs.make_alike(loaded.phases for loaded in sides.values())
                samples, settled, joules = latency.time_phases(
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
                        energy=[(*key, value) for key, value in joules.items()],
                        energy_source=self.meter.source,
                        parity=parity,
                        **self.facts(**{side: graphs.how_decoded(loaded.phases) for side, loaded in sides.items()}),
                    )
                del sides["variant"], models["variant"], model
                gc.collect()

    def memory(self, folder: Path) -> None:
        """Measure the peak memory of one model alone, phase by phase."""
        self.start()
        with torch.inference_mode():
            meter = memory.Meter(self.rank, self.device)
            with meter.phase("load"):
                model = self.load(folder)
                meter.tensors = memory.tensor_bytes(model)
            self._progress("load")
            generate = self.setting.workload.generate
            for phase in phases(model, self.family, self.prompt(folder), generate, keep_cache=False):
                self.peers.barrier()
                with meter.phase(phase.name, partial(getattr, phase, "cache")):
                    phase.begin()
                    for _ in range(generate if phase.name == "decode" else 1):
                        phase.step()
                phase.end()
                self._progress(phase.name)
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

    def _folders(self) -> list[Path]:
        """Return the folders of the job's models, the dense one first."""
        if self.spec["job"] == "memory":
            return [Path(self.spec["folder"])]
        return [Path(name) for name in (self.spec["dense"], *self.spec["variants"]) if name]

    def _config(self, folder: Path) -> dict[str, Any]:
        return bounded.read_object(folder / "config.json")

    def _timed_load(self, folder: Path, baseline: bool) -> tuple[Any, LoadedModel]:
        """Load a model; return it with its phases and the time and energy of loading."""
        self.meter.joules()
        model, seconds = self.peers.timed(lambda: self.load(folder, baseline))
        joules = self.meter.joules()
        self._progress("load")
        tokens = self.setting.workload.generate
        made = phases(model, self.family, self.prompt(folder), tokens)
        if devices.is_gpu(self.device):
            made = graphs.recorded(made, tokens, self.setting.ranks)
        return model, LoadedModel(made, seconds, joules)

    def _progress(self, what: str) -> None:
        """Tell the parent what was done: a group that is silent for too long is ended."""
        self.channel.send("progress", what=what)
