"""What a manifest names, as a plan and its records hold it: where it comes from, and the hash of its content.

A text, a teacher, a file of masks, the user's own data: a plan resolves each once to a ``Reference`` (``plan/resolve``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.sources.cache import sha256_of

_CONTENT = "#content="


@dataclass(frozen=True)
class Reference:
    """A canonical source, or the absolute path of a file, and the hash of its content (empty before it is planned).

    As text it is ``SOURCE#content=HASH``.
    """

    source: str
    content: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference from its text, which lacks the hash where nothing has planned it."""
        source, _, content = text.partition(_CONTENT)
        return cls(source, content)

    def __str__(self) -> str:
        return f"{self.source}{_CONTENT}{self.content}" if self.content else self.source

    @property
    def name(self) -> str:
        """The name shown to readers: the last part of the source's path."""
        return re.split(r"[/\\]", self.source.partition("#sha256=")[0].rstrip("/"))[-1]

    @property
    def identity(self) -> str:
        """What stands for the source in an id: the hash of its content, else its notation."""
        return self.content or self.source

    def unchanged_file(self, description: str, error_type: type[SparsebenchError]) -> Path:
        """Return the path of the file that this names.

        Raises ``error_type`` where the file is missing (the hint names ``description``) or has changed since the plan.
        """
        path = Path(self.source)
        if not path.is_file():
            raise error_type(f"{path}: no such file", f"name {description}")
        if self.content and sha256_of(path) != self.content:
            problem = f"{path}: changed since the run was planned"
            raise error_type(problem, "run again: its new content has a plan of its own")
        return path
