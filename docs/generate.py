"""Writes docs/reference/ and the JSON Schema out of the code: ``python docs/generate.py`` (``make reference``).

The pages are committed, so that they can be read without building anything; a test compares them with what this makes.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

DOCS = Path(__file__).parent
NOTE = "<!-- Made by docs/generate.py: change the code, then `make reference`. -->\n"


def pages() -> dict[str, str]:
    """Every generated file's text, by its path below docs/."""
    from sparsebench.cli.init import manifest_schema
    from sparsebench.manifest.published import SCHEMA_FILE

    return {
        SCHEMA_FILE: json.dumps(manifest_schema(), indent=2) + "\n",
        "reference/index.md": index(),
        "reference/manifest.md": manifest(manifest_schema()),
        "reference/commands.md": commands(),
        "reference/views.md": views(),
        "reference/figures.md": figures(),
        "reference/errors.md": errors(),
    }


def index() -> str:
    """The table of contents."""
    return f"""{NOTE}
# Reference

Made from the code, and checked against it by a test.

| | |
|---|---|
| [the manifest](manifest.md) | every key, its type, its default |
| [commands](commands.md) | every verb with its options, and the exit codes |
| [views and columns](views.md) | what can be asked of the ledger |
| [figures](figures.md) | the header of a figure's `.sql` file, and the shipped ones |
| [errors](errors.md) | what can go wrong, by kind |
| [formats](../format.md) | the packed and the archive format, byte by byte |

```{{toctree}}
:hidden:

manifest
commands
views
figures
errors
```
"""


def manifest(schema: dict[str, Any]) -> str:
    """Every section's keys, from the JSON Schema."""
    shapes = {"Manifest": schema, **schema["$defs"]}
    order = ["Manifest", *sorted(schema["$defs"], key=lambda name: ORDER.get(name, ("", 99))[1])]
    text = f"""{NOTE}
# The manifest

A YAML file (1.2: `1e-4` is a number, `no` is text, `2:4` needs no quotes). Where a value is something "or a list",
a single one stands for a list of one. Every mistake is shown at once, with line, column and what was probably meant.
`sparsebench init` writes a commented one;
[an editor](../howto/editor-and-shell.md) can complete and check it by
<a href="../sparsebench.schema.json">sparsebench.schema.json</a>, which `sparsebench schema` prints.
"""
    for name in order:
        if " " in name:  # a step: they have a section for each verb
            continue
        if name == "ManifestCalibration":
            text += steps(schema["$defs"])
        shape = shapes[name]
        title = ORDER.get(name, (f"`{name}`", 0))[0]
        about = "" if name == "Manifest" else f"{shape['description']}\n\n"
        text += f"\n## {title}\n\n{about}| key | value | default | |\n|---|---|---|---|\n"
        for key, value in shape["properties"].items():
            default = "**required**" if key in shape.get("required", []) else _default(value)
            text += f"| `{key}` | {_value(value)} | {default} | {_cell(value.get('description', ''))} |\n"
    return text


def steps(shapes: dict[str, Any]) -> str:
    """What may be written of each step: by verb, and by which of its methods."""
    text = """
## `variants`, each step

A step is a mapping with one verb, whose value says by which method. An entry is one step or a list of steps, one after the
other. Every field may be a list, and then all combinations are made. Any step of an entry may have `models: [NAME, …]`,
which keeps the entry to these models.
"""
    verbs: dict[str, list[str]] = {}
    rows: dict[str, dict[str, list[str]]] = {}
    for name, shape in shapes.items():
        verb, _, method = name.partition(" ")
        if not method:
            continue
        verbs.setdefault(verb, []).append(method)
        for key, value in shape["properties"].items():
            if key not in (verb, "models"):
                described = _cell(value.get("description", ""))
                row = f"| `{key}` | {_value(value)} | {_default(value)} | {described} |"
                rows.setdefault(row, {}).setdefault(verb, []).append(method)

    def of(verb: str, owners: list[str]) -> str:
        return "all" if owners == verbs[verb] else _names(owners)

    head = "| key | value | default | | of |\n|---|---|---|---|---|\n"
    shared = {row: owners for row, owners in rows.items() if len(owners) > 1}
    for verb, methods in verbs.items():
        text += f"\n### `{verb}`: {_names(methods)}\n\n"
        if any(verb in owners for owners in shared.values()):
            text += "Some of its keys are [keys of several verbs](#keys-of-several-verbs).\n\n"
        own = [(row, owners[verb]) for row, owners in rows.items() if [*owners] == [verb]]
        text += head + "".join(f"{row} {of(verb, owners)} |\n" for row, owners in own)
    text += f"\n### Keys of several verbs\n\n{head}"
    for row, owners in shared.items():
        text += f"{row} {'; '.join(f'`{verb}`: {of(verb, names)}' for verb, names in owners.items())} |\n"
    return text


def _names(methods: Iterable[str]) -> str:
    return ", ".join(f"`{method}`" for method in methods)


ORDER = {
    "Manifest": ("Top level", 0),
    "ManifestModel": ("`models`, each", 1),
    "ManifestCalibration": ("`calibration`", 4),
    "Student": ("`student` of `recover: distill`", 4),
    "ManifestBenchmarks": ("`benchmarks`", 5),
    "ManifestTask": ("`benchmarks`, each task", 6),
    "ManifestRuntime": ("`runtime`", 7),
    "ManifestWorkload": ("`workloads`, each", 8),
    "ManifestStructure": ("`structure`", 9),
    "ManifestOutputs": ("`outputs`", 10),
    "ManifestStorage": ("`storage`", 11),
}


def _default(value: dict[str, Any]) -> str:
    if "default" not in value or value["default"] is None or isinstance(value["default"], dict):
        return ""
    if value["default"] == [] or (
        value["default"] and isinstance(value["default"], list) and len(value["default"]) > 3
    ):
        return f"`{json.dumps(value['default'])}`" if value["default"] else "none"
    found = value["default"]
    return f"`{json.dumps(found[0] if isinstance(found, list) and len(found) == 1 else found)}`".replace('"', "")


def _value(value: dict[str, Any]) -> str:
    """A JSON Schema's type in words."""
    if "$ref" in value:
        return f"[{ORDER[name][0]}](#{_anchor(name)})" if (name := value["$ref"].rpartition("/")[2]) in ORDER else name
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "anyOf" in value or "oneOf" in value:
        listed = [one for one in value.get("anyOf", value.get("oneOf", [])) if one.get("type") != "null"]
        lists = [one for one in listed if one.get("type") == "array"]
        if lists and lists[0]["items"] in listed:
            return f"{_value(lists[0]['items'])}; or a list"
        return " or ".join(_value(one) for one in listed)
    if value.get("type") == "array":
        return f"a list of {_value(value['items'])}"
    least, above, most = value.get("minimum"), value.get("exclusiveMinimum"), value.get("maximum")
    word = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    limits = [f"{least:g} to {most:g}"] if most is not None and least is not None else []
    limits += [f"at least {least:g}"] if least is not None and most is None else []
    limits += [f"above {above:g}"] if above is not None else []
    return ", ".join([word.get(value.get("type", ""), "a mapping"), *limits])


def _anchor(name: str) -> str:
    letters = ORDER[name][0].lower().replace(" ", "-")
    return "".join(letter for letter in letters if letter.isalnum() or letter == "-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def commands() -> str:
    """Every verb with its arguments and options, from the command line itself."""
    from sparsebench.cli.app import app, main

    verbs = {one.callback.__name__: one.callback for one in app.registered_commands if one.callback}
    text = f"""{NOTE}
# Commands

Data goes to stdout, everything else to stderr; `--json` gives data for scripts. `python -m sparsebench` is
`sparsebench`. {_cell(inspect.getdoc(main) or "").partition(". ")[2]}

| | |
|---|---|
"""
    for name, verb in verbs.items():
        text += f"| [`{name}`](#{name}) | {_cell(_parts(verb)[0].partition(chr(10))[0])} |\n"
    for name, verb in verbs.items():
        about, examples = _parts(verb)
        text += f"\n## {name}\n\n{about}\n\n```sh\n{examples}\n```\n\n"
        rows = list(_parameters(verb))
        text += "| | | default | |\n|---|---|---|---|\n" + "".join(rows) if rows else "It takes no options.\n"
    return text


def _parts(verb: Callable[..., None]) -> tuple[str, str]:
    """What a verb's docstring says, and its examples."""
    about, _, examples = inspect.cleandoc(verb.__doc__ or "").partition("\b\n")
    return about.strip(), examples.strip()


def _parameters(verb: Callable[..., None]) -> Iterator[str]:
    """A table row for each parameter, from the annotations that typer reads."""
    from typer.models import OptionInfo

    hints = get_type_hints(verb, include_extras=True)
    for name, parameter in inspect.signature(verb).parameters.items():
        kind, info = get_args(hints[name])
        named = f"`{name.upper()}`"
        if isinstance(info, OptionInfo):
            # In an annotation typer keeps the first name of an option as its "default".
            names = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str)]
            named = ", ".join(f"`{one}`" for one in names or [f"--{name.replace('_', '-')}"])
        alternatives = () if get_origin(kind) is Literal else get_args(kind)
        kinds = [one for one in alternatives or (kind,) if one is not type(None)]
        several = get_origin(kinds[0]) is list or get_origin(kind) is list
        kind = get_args(kinds[0])[0] if get_origin(kinds[0]) is list else kinds[0]
        words = f"`{info.metavar}`" if info.metavar else _kind(kind)
        about = (info.help or "") + (" Repeatable." if several and "epeatable" not in (info.help or "") else "")
        found = getattr(parameter.default, "value", parameter.default)
        default = f"`{found}`" if found not in (None, False) else ""
        shown = "**required**" if parameter.default is inspect.Parameter.empty else default
        yield f"| {named} | {words} | {shown} | {_cell(about)} |\n"


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(kind))
    if issubclass(kind, Enum):
        return ", ".join(f"`{one.value}`" for one in kind)
    return {bool: "", str: "text", Path: "path", int: "whole number", float: "number"}[kind]


def views() -> str:
    """The public views and their columns, from the comments of an empty ledger."""
    from sparsebench.ledger import connect, query, schema, sqlfiles

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.duckdb"
        with connect.writer(path, 1.0) as connection:
            schema.upgrade(connection, path)
        rows = query.run(path, sqlfiles.read("describe")).dicts()
    text = f"""{NOTE}
# Views and columns

What `sparsebench sql` lists without a query. Shares and sparsities are numbers from 0 to 1, times are in the unit of their
name, bytes are bytes. [Ten questions](../sql.md) show the views at work; `sparsebench tables` writes them to
Parquet or CSV.
"""
    for row in rows:
        if not row["column"]:
            text += f"\n## {row['view']}\n\n{_cell(row['meaning'] or '')}\n\n| column | type | |\n|---|---|---|\n"
        else:
            text += f"| `{row['column']}` | {row['type'].lower()} | {_cell(row['meaning'] or '')} |\n"
    return text


def figures() -> str:
    """The keys of a figure's header, and the shipped figures."""
    from sparsebench.figures.spec import KEYS, KINDS, listing

    text = f"""{NOTE}
# Figures

A figure is a `.sql` file whose first lines are `-- key: value`; the query below gives what is drawn.
[How to draw your own](../howto/own-figure.md).

| key | |
|---|---|
"""
    text += "".join(f"| `{key}` | {_cell(meaning)} |\n" for key, meaning in KEYS.items())
    text += "\nWhat each kind cannot do without:\n\n| kind | keys |\n|---|---|\n"
    text += "".join(f"| `{kind}` | {', '.join(f'`{key}`' for key in keys)} |\n" for kind, keys in KINDS.items())
    text += "\n## The shipped figures\n\n| name | title | what it is about | kind |\n|---|---|---|---|\n"
    return text + "".join(
        f"| `{one.name}` | {_cell(one.title)} | {_cell(one.get('about'))} | {one.kind} |\n"
        for one in listing(Path("no such folder"))
    )


def errors() -> str:
    """The tree of errors, as the module draws it."""
    from sparsebench import errors as room

    about, _, tree = inspect.cleandoc(room.__doc__ or "").partition("\n\n")
    return f"""{NOTE}
# Errors

{about.removeprefix("The exception tree. ")} On the command line it is one message on stderr, the
way out behind `→`; a traceback is a bug.

```text
{tree}
```
"""


def main() -> None:
    """Write every page."""
    for name, text in pages().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
