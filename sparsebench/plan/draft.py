"""The manifest that fits a model and a file of data: ``sparsebench init --model … --data …``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks import KINDS, OwnData
from sparsebench.benchmarks.heads import REGRESSION, data_misfit
from sparsebench.errors import UserError
from sparsebench.manifest.names import Family
from sparsebench.manifest.nodes import flow
from sparsebench.manifest.problems import did_you_mean, one_of
from sparsebench.models.files.families import has_classifier, has_masked_lm, has_tagger, output_family
from sparsebench.models.files.labels import choice_problem
from sparsebench.models.files.text import LENGTH_KEYS
from sparsebench.models.shape.topology import NOT_REPLAYED
from sparsebench.plan.single import name_of
from sparsebench.sources.text import read_records

USUAL_COLUMNS = {
    "text": "text sentence sentence1 review content body comment tweet message document premise question title",
    "text_pair": "text_pair sentence2 hypothesis text2 question2",
    "label": "label labels class category sentiment stars rating score intent topic target y",
    "tokens": "tokens words",
    "tags": "tags ner_tags pos_tags labels",
    "sentence1": "sentence1 text1",
    "sentence2": "sentence2 text2",
    "score": "score similarity label",
    "context": "context question prompt query",
    "choices": "choices options endings",
    "gold": "gold answer label",
    "input": "input question prompt source instruction text",
    "target": "target answer output response summary completion",
}
"""By role in a record, the names that its column usually has, likeliest first."""
MOST_DOCUMENTS, MOST_WINDOWS, PROMPT_TOKENS = 1000, 64, 128
"""The most documents, and windows of text, that are scored unless the manifest is changed; the tokens of a timed prompt."""
TEMPLATE = """\
# How far {name} can be made smaller, by your own data.
# `sparsebench plan THIS_FILE` shows every cell and how long the run takes; `sparsebench run THIS_FILE` measures.
# `sparsebench choose --model {name}` then lists the variants that fit. `sparsebench init` explains every key.
version: 1
models:
  - {model}
variants:
{variants}
benchmarks:
  {family}:
{tasks}
"""
RUNTIME = """\
# Times and memory. Without this section, only scores and sizes are measured.
runtime:
  - {{engines: [sparse], workloads: [{workload}], select: {{prune: magnitude}}}}
  - {{engines: [hf], workloads: [{workload}], select: [{{quantize: int8}}, {{quantize: int4}}]}}
"""


def draft(
    model: sources.Source,
    family: Family,
    config: Mapping[str, Any],
    data: sources.Source,
    folder: Path,
    columns: Mapping[str, str],
    labels: Sequence[str] = (),
) -> str:
    """Return a manifest, to stand in ``folder``, for a model with this config.json that is scored on the ``data``.

    ``labels`` are the names of a head's outputs where config.json does not give them. ``columns`` names columns of the
    data by their role in a record; the others are found by their usual names. Raises UserError where the data fit no
    task of such a model, SourceError where they cannot be read.
    """
    source_text = _written(model, folder)
    name = source_text if source_text in sources.KNOWN else name_of(model)
    sparsities = "sparsity: [0.3, 0.5, 0.7]"
    variants = [f"{{prune: magnitude, {sparsities}}}"]
    if str(config.get("model_type")) not in NOT_REPLAYED:
        variants.append(
            f"{{prune: wanda, {sparsities}}}      # reads passages of BoolQ; `calibration:` names other text"
        )
    variants += ["{quantize: int8}", "{quantize: int4}"]
    entries = _tasks(family, config, data, columns, labels)
    label_entry = {"labels": list(labels)} if labels else {}
    text = TEMPLATE.format(
        name=name,
        model=flow({"name": name, "source": source_text, "family": family, **label_entry}),
        variants="\n".join(f"  - {variant}" for variant in variants),
        family=family,
        tasks="\n".join(
            f"    - {flow({'task': entry['task'], 'source': _written(data, folder), **entry})}" for entry in entries
        ),
    )
    if has_classifier(config) and family == "encoder-decoder":
        return text  # no time is measured
    # transformers, which knows more of a model's limits, takes seconds to import.
    limits = [limit for key in LENGTH_KEYS if isinstance(limit := config.get(key), int) and limit > 1]
    prompt = min([PROMPT_TOKENS, *(limit // 2 for limit in limits)])
    workload = {"batch": 1, "prompt": prompt}
    if output_family(family, config) != "encoder":
        workload["generate"] = min(16, prompt)
    return text + RUNTIME.format(workload=flow(workload))


def _written(source: sources.Source, folder: Path) -> str:
    """Return a source as a manifest in ``folder`` names it: by its alias, or from that folder on."""
    for alias in sources.KNOWN:
        if sources.parse(alias).text == source.text:
            return alias
    path = Path(source.location).resolve()
    inside = source.kind == "path" and path.is_relative_to(folder.resolve())
    return f"path:{path.relative_to(folder.resolve())}" if inside else source.text


def _tasks(
    family: Family, config: Mapping[str, Any], data: sources.Source, columns: Mapping[str, str], labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the entries of ``benchmarks`` that score the data: two metrics where a head chooses classes."""
    cache = sources.Cache()
    path = sources.fetch(data, cache)
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a file of data is needed", "name the file")
    record = next(read_records(path), None)
    if record is None:
        raise UserError(f"{path}: it holds no record", "name a file with data")
    names = [*record] if isinstance(record, Mapping) else []
    for column in columns.values():
        if column not in names:
            hint = f"{did_you_mean(column, names)} it has {', '.join(names) or 'no columns'}"
            raise UserError(f"{path}: no column {column!r}", hint.strip())
    kinds = _kinds(family, config)
    known_roles = {role for kind in kinds for role in (*_roles(kind), *KINDS[kind].optional)}
    if unknown := next((role for role in columns if role not in known_roles), None):
        raise UserError(
            f"--columns {unknown}: no task for this model reads such a column",
            did_you_mean(unknown, known_roles) or one_of(sorted(known_roles)),
        )
    fitting = {kind: by_role for kind in kinds if (by_role := _columns(kind, names, columns)) is not None}
    if not fitting:
        needs = "; ".join(f"`{kind}` asks for {', '.join(_roles(kind))}" for kind in kinds)
        raise UserError(
            f"{path}: it has {', '.join(names) or 'no columns'}, which fits no task for this model: {needs}",
            f'say which is which: --columns "{", ".join(f"{role}: NAME" for role in _roles(kinds[0]))}"',
        )
    kind, columns_by_role = next(iter(fitting.items()))
    renamed = {role: name for role, name in columns_by_role.items() if role != name}
    entry: dict[str, Any] = {"task": kind}
    if KINDS[kind].columns:
        entry |= {"columns": renamed} if renamed else {}
    elif renamed:
        entry["field"] = columns_by_role["text"]
    if kind == "classify" and choice_problem(config):
        entry["metric"] = REGRESSION[-1]
    own_data = OwnData(
        kind, "", entry.get("field"), tuple(renamed.items()), metric=entry.get("metric"), source=data.text
    )
    if kind == "classify" and (misfit := data_misfit(own_data, config, labels)):
        _, refusal = misfit
        raise UserError(f"{path}: {refusal.reason}", refusal.way_out or None)
    limit = MOST_DOCUMENTS if KINDS[kind].columns else MOST_WINDOWS
    entry |= {"limit": limit} if own_data.estimate_documents(cache) > limit else {}
    yield entry
    if kind == "classify" and "metric" not in entry:
        yield {**entry, "metric": "macro_f1"}


def _kinds(family: Family, config: Mapping[str, Any]) -> list[str]:
    """Return the kinds of tasks over one's own data that suit a model, likeliest first."""
    if has_classifier(config):
        return ["classify"]
    if family == "encoder-decoder":
        return ["generation"]
    if family == "decoder":
        return ["choices", "generation", "perplexity"]
    if has_tagger(config):
        return ["tags"]
    return ["similarity", "probe", *(["pseudo_perplexity"] if has_masked_lm(config) else [])]


def _roles(kind: str) -> tuple[str, ...]:
    return KINDS[kind].columns or ("text",)


def _columns(kind: str, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str] | None:
    """Return the column of each role in a record of this kind; None where one is not found, or ``columns`` has another.

    A text without columns, and one for a task of running text, has one role.
    """
    columns_by_role: dict[str, str] = {}
    roles = (*_roles(kind), *KINDS[kind].optional)
    if not columns.keys() <= set(roles):
        return None
    for role in roles:
        unused = [name for name in names if name not in (*columns_by_role.values(), *columns.values())]
        usual = (name for usual_name in USUAL_COLUMNS[role].split() for name in unused if name.lower() == usual_name)
        if name := columns.get(role) or next(usual, None):
            columns_by_role[role] = name
        elif role in _roles(kind) and (names or KINDS[kind].columns):
            return None
    return columns_by_role
