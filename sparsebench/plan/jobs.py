"""Groups cells into jobs: cells that share something expensive share a process; the jobs of a pass follow one another.

Order within a model: fetch and prepare it, the dense variant's jobs, then each pass over a parent (make, assess, score,
time, measure memory), parents first. Timed jobs wait until no other can start, and the folders of the variants that
they time stay until then. The dense model is timed beside itself in the job of the first pass that is timed alike: such
a job takes long to start.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator

from sparsebench import devices
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.expand import Plan
from sparsebench.plan.fingerprint import digest
from sparsebench.plan.stages import JOB_KINDS, MAKE, MEMORY, STAGES, making_settings, needs_dense

_Groups = dict[tuple[str, object], list[Cell]]
"""The cells of each job of a pass, by the job's kind and its stage's key."""
_Unpaired = dict[tuple[str, object, str], list[Cell]]
"""The cells of the dense model that no pass has taken yet, by a job's kind and key, and the model."""


def jobs(
    plan: Plan,
    cells: Iterable[Cell],
    present: Callable[[Variant], bool],
    packed: Callable[[Variant], bool] = lambda _: False,
) -> list[Job]:
    """Return the jobs that do ``cells``, in order.

    ``present`` tells which variants' folders exist already, ``packed`` which have packed copies. What was made before
    is unpacked from these, which takes almost no time compared with making it again.
    """
    pending = list(cells)
    missing = _missing(plan, pending, present, packed)
    makers: dict[str, Job] = {}
    unpaired: _Unpaired = {}
    ordered: list[Job] = []
    for variants, pass_cells in _passes(plan, pending, missing.values()):
        after: tuple[str, ...] = ()
        if to_make := [variant for variant in variants if variant.id in missing]:
            job = _making_job(plan, to_make, [cell for cell in pass_cells if cell.stage == MAKE.name], makers, packed)
            makers |= {variant.id: job for variant in to_make}
            ordered.append(job)
            after = (job.id,)
        # A pair needs the dense model, which must be there too.
        if variants[0].parents and (dense_maker := makers.get(variants[0].parents[0])):
            after = (dense_maker.id, *after)
        groups = _groups(pass_cells)
        _pair(groups, variants[0], unpaired)
        ordered += [_measuring_job(kind, group, after) for (kind, _), group in groups.items()]
    for (kind, _, _), group in unpaired.items():  # no variant is timed beside these
        maker = makers.get(group[0].variant.id)
        ordered.append(_measuring_job(kind, group, (maker.id,) if maker else ()))
    return ordered


def _passes(plan: Plan, cells: list[Cell], missing: Iterable[Variant]) -> Iterator[tuple[list[Variant], list[Cell]]]:
    """Yield the variants of each pass, and their cells: a parent's pass before its children's, a model's together."""
    passes: dict[Hashable, dict[str, Variant]] = {}
    for variant in [*(cell.variant for cell in cells), *missing]:
        passes.setdefault(_pass_key(variant), {})[variant.id] = variant
    cells_by_variant: dict[str, list[Cell]] = {}
    for cell in cells:
        cells_by_variant.setdefault(cell.variant.id, []).append(cell)
    model_order = {name: number for number, name in enumerate(plan.dense)}
    lists = [list(variants.values()) for variants in passes.values()]
    for variants in sorted(lists, key=lambda variants: (model_order[variants[0].model], len(variants[0].steps))):
        yield variants, [cell for variant in variants for cell in cells_by_variant.get(variant.id, ())]


def _groups(cells: Iterable[Cell]) -> _Groups:
    """Return the cells that measure, those of a job together, in the order of the jobs' kinds."""
    groups: _Groups = {}
    for cell in cells:
        if stage := STAGES.get(cell.stage):
            groups.setdefault((stage.job_kind.name, stage.job_key(cell)), []).append(cell)
    kind_order = list(JOB_KINDS)
    return dict(sorted(groups.items(), key=lambda item: kind_order.index(item[0][0])))


def _pair(groups: _Groups, variant: Variant, unpaired: _Unpaired) -> None:
    """Move the dense cells that are timed in pairs to ``unpaired``, and from there to the first pass timed alike.

    ``groups`` are those of one pass, ``variant`` is one of its variants.
    """
    for kind, key in list(groups):
        if JOB_KINDS[kind].timed and JOB_KINDS[kind].paired:
            if variant.is_dense:
                unpaired[kind, key, variant.model] = groups.pop((kind, key))
            else:
                groups[kind, key][:0] = unpaired.pop((kind, key, variant.model), [])


def _measuring_job(kind: str, cells: list[Cell], after: tuple[str, ...]) -> Job:
    return Job(digest([kind, [cell.id for cell in cells]]), kind, tuple(cells), after=after)


def remaking_jobs(plan: Plan, variants: Iterable[Variant], present: Callable[[Variant], bool]) -> list[Job]:
    """Return the jobs that make ``variants``, whose folders are gone, and those ancestors that are not ``present``.

    Parents come first.
    """
    missing: dict[str, Variant] = {}
    for variant in variants:
        for ancestor in [variant, *(plan.variants[name] for name in reversed(variant.parents))]:
            if present(ancestor):
                break
            parents = (plan.variants[name] for name in made_from(ancestor))
            missing |= {ancestor.id: ancestor, **{parent.id: parent for parent in parents if not present(parent)}}
    makers: dict[str, Job] = {}
    for variant in sorted(missing.values(), key=lambda variant: len(variant.steps)):
        makers[variant.id] = _making_job(plan, [variant], [], makers)
    return list(makers.values())


def _missing(
    plan: Plan, cells: list[Cell], present: Callable[[Variant], bool], packed: Callable[[Variant], bool]
) -> dict[str, Variant]:
    """Return the variants whose folders must be made, by id.

    These are the variants that cells need and that are not there, those whose making was never recorded, and what these
    are made from, unless they are only unpacked. Paired stages and steps that read the dense model need that as well.
    """
    missing: dict[str, Variant] = {}
    to_record = {cell.variant.id for cell in cells if cell.stage == MAKE.name}

    def need(variant: Variant) -> None:
        if variant.heuristic or variant.id in missing or (present(variant) and variant.id not in to_record):
            return
        missing[variant.id] = variant
        for parent in made_from(variant) if variant.id in to_record or not packed(variant) else ():
            need(plan.variants[parent])

    for cell in cells:
        need(cell.variant)
        if needs_dense(cell):
            need(plan.dense[cell.variant.model])
    return missing


def uses_device(job: Job) -> bool:
    """Return whether a job calculates on the run's device. Making from weights alone only reads and writes files."""
    if job.kind == MAKE.name:
        return any(variant.steps[-1].settings.on_device() for variant in job.makes if variant.steps)
    return JOB_KINDS[job.kind].uses_device


def runs_alone(job: Job, on_gpu: bool) -> bool:
    """Return whether a job has the machine to itself; ``on_gpu`` says whether the run's jobs calculate on GPUs.

    Timed jobs do, apart from those that measure memory without needing it. On a CPU one rank's peak is its own, whatever
    runs beside it; several ranks wait for each other, which a neighbour would stretch. On GPUs, jobs that measure memory,
    and those whose manifest says ``alone: device``, have only the GPUs that they need to themselves. That requires all
    GPUs to have the same name: records are filed under it, and which GPUs a job gets is known only later.
    """
    timed = JOB_KINDS[job.kind].timed
    if not timed or any(cell.nodes for cell in job.cells):
        return timed
    if not on_gpu:
        return job.kind != MEMORY.name or ranks_of(job) > 1
    if len(set(devices.gpu_names())) > 1:
        return True
    return job.kind != MEMORY.name and not any("alone" in cell.settings for cell in job.cells)


def takes_all_cores(job: Job, on_gpu: bool) -> bool:
    """Return whether a job calculates with all cores: one that runs alone and, on a CPU, one that measures memory.

    A model's memory is that with all threads, also where two jobs take turns on the cores.
    """
    return runs_alone(job, on_gpu) or (JOB_KINDS[job.kind].timed and not on_gpu)


def ranks_of(job: Job) -> int:
    """Return the number of ranks, which is the same for all cells of a job. On GPUs each rank has its own."""
    return max((cell.settings.get("ranks", 1) for cell in job.cells), default=1)


def nodes_of(job: Job) -> int:
    """Return how many nodes of a cluster a job needs at once: as many as the manifest asks for, else one."""
    return max((cell.settings.get("nodes", 1) for cell in job.cells), default=1)


def reads_dense(variant: Variant) -> bool:
    """Return whether the step that makes a variant reads the dense model beside its parent."""
    return bool(variant.steps) and variant.steps[-1].settings.reads_dense()


def made_from(variant: Variant) -> tuple[str, ...]:
    """Return the ids of the variants that the last step of ``variant`` reads: its parent and perhaps the dense model."""
    return tuple(dict.fromkeys((*variant.parents[-1:], *(variant.parents[:1] if reads_dense(variant) else ()))))


def unpacks(job: Job, variant: Variant, packed: Callable[[Variant], bool]) -> bool:
    """Return whether a job unpacks one of the variants that it makes, and so reads nothing that it is made from."""
    return packed(variant) and all(cell.variant.id != variant.id for cell in job.cells)


def _pass_key(variant: Variant) -> Hashable:
    """Return a key that is the same for variants made in one pass."""
    if variant.is_dense:
        return variant.id
    step = variant.steps[-1]
    return variant.parents[-1], step.verb, step.settings.pass_key(), variant.calibration


def _making_job(
    plan: Plan,
    variants: list[Variant],
    cells: list[Cell],
    makers: dict[str, Job],
    packed: Callable[[Variant], bool] = lambda _: False,
) -> Job:
    """Return the job that makes the folders of one pass."""
    first = variants[0]
    if first.is_dense:
        return Job(digest(["prepare", first.id]), "prepare", (), makes=(first,))
    parent = plan.variants[first.parents[-1]]
    after = tuple(dict.fromkeys(makers[variant_id].id for variant_id in made_from(first) if variant_id in makers))
    to_record = {cell.variant.id for cell in cells}
    # The ``make`` cells are as a plan has them, but without ids.
    repeated = tuple(
        Cell("", MAKE.name, variant, making_settings(plan.model(variant.model), plan.calibration, variant))
        for variant in variants
        if variant.id not in to_record and not packed(variant)
    )
    job_id = digest(["make", [variant.id for variant in variants]])
    return Job(job_id, MAKE.name, tuple(cells), tuple(variants), parent, after, repeated)
