"""What a rank does for its job: times models, measures their memory, or adds up one tensor with the others."""

from __future__ import annotations

import gc
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench import bounded, devices, energy
from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.modules.build import meta_model
from sparsebench.runtime import bandwidth, graphs, machine, memory
from sparsebench.runtime.channel import Channel
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import Engine, SavedModel
from sparsebench.runtime.latency import LoadedModel, PhaseTimer, RankSync
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.refusals import rank_refusal
from sparsebench.runtime.results import RankJob, Setting, Side
from sparsebench.runtime.workload import Prompt, draw_prompt, phases

NO_METER = "none: the ranks are on several nodes"


class RankWorker:
    """A rank's engine, and the job that it has to do."""

    def __init__(self, job: RankJob, setting: Setting, rank: int, channel: Channel) -> None:
        self.job, self.setting = job, setting
        self.rank, self.channel = rank, channel
        self.engine: Engine = engine(setting.engine)
        if setting.forced:
            self.engine.forced = True

    def do(self, process: int) -> None:
        """Do the job, as number ``process``."""
        match self.job.kind:
            case "add up":
                self.check_all_reduce()
            case "memory":
                self.start().memory(self.job.folders[0])
            case "latency":
                self.start().latency(process)

    def import_model(self) -> None:
        """Import what transformers imports for the job's first model, so that this does not count as loading.

        Some engines write files of their own from the models' folders: they do so here, too.
        """
        folders, family = self.job.folders, self.job.family
        meta_model(family, bounded.read_object(folders[0] / "config.json"))
        if prepare := getattr(self.engine, "prepare", None):
            prepare([SavedModel(folder, family, self.setting.dtype) for folder in folders])

    def start(self) -> StartedRank:
        """Import libraries, take the device, join the group of ranks and set up the energy meter."""
        self.import_model()
        # With one thread too many, two ranks spin against each other: ten times slower and more, without any message.
        torch.set_num_threads(threads_per_rank(self.setting))
        device = self.take_device()
        notes = self.engine.start(self.rank, self.setting.ranks)
        if self.setting.nodes:
            notes = (*notes, f"ranks on {', '.join(self.setting.nodes)}")
        # Energy counters belong to the machine: one rank reads them.
        if self.rank == 0 and not self.setting.nodes:
            meter = energy.energy_meter(device, self.setting.ranks)
        else:
            meter = energy.EnergyMeter("" if self.rank else NO_METER)
        memory.settle_allocator()
        gc.collect()
        gc.freeze()  # the libraries' objects stay: collections between phases need not visit them
        return StartedRank(self, device, notes, RankSync(self.setting.ranks, devices.is_gpu(device)), meter)

    def take_device(self) -> str:
        """Choose this rank's device before the group joins: the GPU with its local rank's number, else the CPU.

        Raises UnsupportedError where there are too few GPUs, the engine runs on a CPU only, or torch does not see the GPU
        that was asked for.
        """
        if self.setting.device == "cpu":
            return "cpu"
        if torch.cuda.is_available():
            if refusal := rank_refusal(self.setting, torch.cuda.device_count()):
                raise refusal.error()
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
            return device
        if self.setting.on_gpu:
            raise UnsupportedError(
                f"device {self.setting.device}: torch sees no GPU in rank {self.rank}",
                "see why: sparsebench doctor; or say `device: cpu`",
            )
        return "cpu"

    def check_all_reduce(self) -> None:
        """Join the group, add up one number per rank, and send on which GPU that was done.

        Raises MeasureError where the sum is wrong.
        """
        from deepspeed import comm

        device = self.take_device()
        notes = self.engine.start(self.rank, self.setting.ranks)
        total = torch.full((1024,), float(self.rank + 1), device=device)  # NCCL does not accept CPU tensors
        comm.inference_all_reduce(total)  # what sharded layers call; it uses shared memory where that is on
        expected = sum(range(1, self.setting.ranks + 1))
        if not bool((total == expected).all()):
            raise MeasureError(f"{self.setting.ranks} ranks add up to {float(total[0])} where {expected} is right")
        gpu = str(torch.cuda.get_device_properties(device).uuid) if devices.is_gpu(device) else ""
        self.channel.send("result", notes=notes, gpu=gpu)

    def progress(self, what: str) -> None:
        """Tell the parent what was done: a group that is silent for too long is ended."""
        self.channel.send("progress", what=what)


@dataclass(frozen=True)
class StartedRank:
    """A rank that has its device and has joined its group: it loads models, times them and measures their memory."""

    worker: RankWorker
    device: str
    notes: tuple[str, ...]
    sync: RankSync
    meter: energy.EnergyMeter

    @property
    def setting(self) -> Setting:
        """How to measure."""
        return self.worker.setting

    def prompt(self, folder: Path) -> Prompt:
        """Return the workload's inputs on this rank's device, in the vocabulary of the model in ``folder``."""
        return draw_prompt(bounded.read_object(folder / "config.json"), self.setting.workload, self.device)

    def saved(self, folder: Path) -> SavedModel:
        """Return the model in a folder, as the setting runs it."""
        return SavedModel(folder, self.worker.job.family, self.setting.dtype)

    def load(self, folder: Path, baseline: bool = False) -> Any:
        """Load the model with the engine and copy its tensors out of the mapped file (``memory.copy_out``).

        Its tensors are ordinary ones, as a user's are, also where this is called in inference mode.
        """
        workload = self.setting.workload
        with torch.inference_mode(mode=False), torch.no_grad():
            wrapped = self.worker.engine.load(self.saved(folder), workload.prompt + workload.generate, baseline)
            memory.copy_out(wrapped.module)
        return wrapped

    def parity(self, folder: Path) -> dict[str, Any] | None:
        """Measure how far the engine's output is from the plain model's, on a shortened copy of this folder's model."""
        parity = self.worker.engine.parity(self.saved(folder), self.prompt(folder))
        gc.collect()
        self.worker.progress("parity")
        return asdict(parity) if parity else None

    def facts(self, dtype: torch.dtype, variant: str = "", dense: str = "") -> dict[str, Any]:
        """Return the fields of every result; ``variant`` and ``dense`` say how each side decodes."""
        notes = [*self.notes]
        if self.worker.rank == 0 and devices.is_gpu(self.device):
            notes += filter(None, [machine.gpu_state(range(self.setting.ranks_per_node))])
        if dense and dense != variant:
            notes.append(f"dense model, {dense}")
        return {
            "threads": torch.get_num_threads(),
            "kernel": "; ".join(filter(None, (self.worker.engine.kernel, variant))),
            "device": self.device.split(":")[0],
            "dtype": dtype_name(dtype),
            "notes": notes,
        }

    def latency(self, process: int) -> None:
        """Time the dense model beside each variant in turn; where there is none, each variant alone.

        This is one ``process`` of several; the first compares the variants' outputs with the plain model's.
        """
        job = self.worker.job
        timer = PhaseTimer(self.setting, self.sync, self.worker.progress, self.meter, process)
        read_speed = bandwidth.read_bytes_per_second(self.sync, self.device)
        with torch.inference_mode():
            models: dict[Side, Any] = {}
            sides: dict[Side, LoadedModel] = {}
            if job.dense:
                models["dense"], sides["dense"] = self._timed_load(Path(job.dense), baseline=True)
            for index, name in enumerate(job.variants):
                parity = None if job.baseline or process else self.parity(Path(name))
                models["variant"], sides["variant"] = self._timed_load(Path(name), job.baseline)
                for model in models.values():
                    # Copied again: what a process loads first is laid out otherwise, and was seen up to 10% slower.
                    memory.copy_out(model.module)
                graphs.match_decode_modes(loaded.phases for loaded in sides.values())
                samples, steady_phases, joules = timer.time_phases(sides)
                if self.worker.rank == 0:
                    decoding = {side: graphs.decode_mode(loaded.phases) for side, loaded in sides.items()}
                    self.worker.channel.send(
                        "result",
                        True,
                        index=index,
                        process=process,
                        samples=[asdict(sample) for sample in samples],
                        steady=steady_phases,
                        energy=[(*key, value) for key, value in joules.items()],
                        energy_source=self.meter.source,
                        read_bytes_per_second=read_speed,
                        parity=parity,
                        **self.facts(models["variant"].module.dtype, **decoding),
                    )
                del sides["variant"], models["variant"], model
                gc.collect()

    def memory(self, folder: Path) -> None:
        """Measure the peak memory of one model alone, phase by phase."""
        with torch.inference_mode():
            meter = memory.MemoryMeter(self.worker.rank, self.device)
            with meter.phase("load"):
                model = self.load(folder)
                meter.tensor_bytes = memory.tensor_bytes(model)
            self.worker.progress("load")
            generate = self.setting.workload.generate
            for phase in phases(model, self.worker.job.family, self.prompt(folder), generate, keep_cache=False):
                self.sync.barrier()
                with meter.phase(phase.name, partial(getattr, phase, "cache")):
                    phase.begin()
                    for _ in range(generate if phase.name == "decode" else 1):
                        phase.step()
                phase.end()
                self.worker.progress(phase.name)
            facts = self.facts(model.module.dtype)
            del model, phase
            gc.collect()
            # Parity comes last: its leftover heap would count as baseline, and a model that fills that heap as nothing.
            parity = self.parity(folder)
        memories = [asdict(phase_memory) for phase_memory in meter.memories]
        self.worker.channel.send("result", True, memories=memories, parity=parity, source=meter.source, **facts)

    def _timed_load(self, folder: Path, baseline: bool) -> tuple[Any, LoadedModel]:
        """Load a model; return it with its phases and the time and energy of loading."""
        self.meter.take_joules()  # what was used before does not count
        model, seconds = self.sync.timed(lambda: self.load(folder, baseline))
        joules = self.meter.take_joules()
        self.worker.progress("load")
        generate = self.setting.workload.generate
        model_phases = phases(model, self.worker.job.family, self.prompt(folder), generate)
        if devices.is_gpu(self.device):
            model_phases = graphs.with_recorded_decoding(model_phases, generate, self.setting.ranks)
        return model, LoadedModel(model_phases, seconds, joules)
