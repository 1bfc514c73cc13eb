"""Locates the teachers that a manifest names; refuses teachers that cannot teach and students that cannot be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.errors import SourceError
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.nodes import At
from sparsebench.manifest.problems import Problem
from sparsebench.manifest.recipes import is_for, steps_of, verb_and_name
from sparsebench.manifest.schema import ManifestModel
from sparsebench.models.dimensions import dimensions
from sparsebench.models.families import family_of
from sparsebench.models.tokenizers import same_tokens
from sparsebench.plan.fingerprint import digest
from sparsebench.steps.contract import with_content
from sparsebench.steps.recover import DENSE
from sparsebench.steps.registry import kinds


@dataclass(frozen=True)
class Teachers:
    """The teachers and students of a manifest, with its ``models`` in canonical notation and their ``configs``.

    ``pinned`` returns a hub source at its commit.
    """

    loaded: LoadedManifest
    models: Sequence[ManifestModel]
    configs: Mapping[str, Mapping[str, Any]]
    pinned: Callable[[sources.Source], sources.Source]
    cache: sources.Cache

    def located(self, entries: Sequence[Any]) -> tuple[list[Any], list[Problem]]:
        """Return the entries of ``variants`` and the problems found.

        Teachers are in canonical notation, with a hash of their content.
        """
        problems: list[Problem] = []
        found: list[Any] = []
        for place, entry in enumerate(entries):
            meant = [model for model in self.models if is_for(entry, model.name)]
            made: list[dict[str, Any]] = []
            for at, step in steps_of(place, entry):
                if not made:
                    problems += self._students(step, meant, at)
                made.append({**step, **self._taught(step, meant, at, problems)})
            found.append(made if isinstance(entry, list) else made[0])
        return found, problems

    def _taught(
        self, step: Mapping[str, Any], meant: Sequence[ManifestModel], at: At, problems: list[Problem]
    ) -> dict[str, Any]:
        def one(where: At, value: Any) -> Any:
            if isinstance(value, list):
                return [one((*where, place), each) for place, each in enumerate(value)]
            if value == DENSE:
                return value
            try:
                source = self.pinned(sources.parse(value, self.loaded.folder))
                for words, hint in self._unfit(source, meant):
                    problems.append(self.loaded.problem(where, f"{value}: {words}", "", hint))
                return with_content(source.text, digest(sources.fingerprint(source, self.cache)))
            except SourceError as error:
                problems.append(self.loaded.problem(where, error.message, "", error.hint or ""))
                return value

        verb, _ = verb_and_name(step, kinds())
        return {key: one((*at, key), step[key]) for key in kinds()[verb].teachers if key in step}

    def _unfit(self, source: sources.Source, meant: Sequence[ManifestModel]) -> Iterator[tuple[str, str]]:
        """Yield why a model cannot teach those of an entry, with hints, as far as known before weights are fetched."""
        config = sources.read_config(source, self.cache)
        for model in meant:
            own = self.configs.get(model.name)
            if config and family_of(config) not in (None, model.family):
                yield f"`{model.name}` is of another family, {model.family}", "a teacher of the same family"
                continue
            rows = [dimensions(one).vocabulary for one in (config, own) if one and "vocab_size" in one]
            where = sources.parse(model.source, self.loaded.folder)
            folders = [Path(one.location) for one in (source, where) if one.kind == "path"]
            if len(rows) == 2 and rows[0] != rows[1]:
                words = f"its vocabulary has {rows[0]:,} tokens, that of `{model.name}` has {rows[1]:,}"
                yield words, "a teacher with the same tokenizer"
            elif len(folders) == 2 and same_tokens(*folders) is False:
                yield f"its tokenizer is not that of `{model.name}`", "a teacher with the same tokenizer"

    def _students(self, step: Mapping[str, Any], meant: Sequence[ManifestModel], at: At) -> Iterator[Problem]:
        """Report students that ask for more blocks than their model has, or for blocks that it lacks."""
        student = step.get("student")
        for described in student if isinstance(student, list) else [student]:
            layers = described.get("layers") if isinstance(described, dict) else None
            asked = max(layers) + 1 if isinstance(layers, list) else layers or 0
            for model in meant:
                size = dimensions(self.configs[model.name]) if model.name in self.configs else None
                fewest = min(size.layers, size.decoder_layers or size.layers) if size else asked
                if asked > fewest:
                    words = f"block {asked - 1}" if isinstance(layers, list) else f"{asked} blocks"
                    yield self.loaded.problem(
                        (*at, "student"), f"{words}, where a stack of `{model.name}` has {fewest}", "fewer `layers`"
                    )
