"""A package index of the test's own, for pip alone."""

from collections.abc import Iterator

import pytest

from tests.sources.servers import Served, serving


@pytest.fixture
def pypi(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """An empty index on loopback that pip is pointed at; the user's own configuration of pip is out of the way."""
    with serving(Served()) as served:
        for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT", "PIP_NO_INDEX", "PIP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{served.url}/simple")
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served
