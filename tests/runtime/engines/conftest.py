"""Engines that need a group of ranks, in this process."""

from collections.abc import Iterator

import pytest

from sparsebench.runtime.group import free_ports


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a rank finds that is alone; DeepSpeed's group ends with the test."""
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**names, "MASTER_PORT": free_ports(1)[0], "GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)
    yield
    from deepspeed import comm

    if comm.is_initialized():
        comm.destroy_process_group()
