"""Hidden states between blocks: two buffers per stream, in memory or in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.replay.stack_replay import States


def test_groups_must_agree_on_the_form_of_states() -> None:
    import torch

    states = States(1, 2)
    states.write(0, slice(0, 1), torch.zeros(1, 3, 4))
    with pytest.raises(
        UnsupportedError, match=r"\(3, 4\) torch.float32 in one group of samples and \(3, 4\) torch.float16"
    ):
        states.write(0, slice(1, 2), torch.zeros(1, 3, 4, dtype=torch.float16))
    states.shrink()
    states.write(0, slice(1, 2), torch.zeros(1, 3, 8, dtype=torch.float16))


def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    import torch

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ModelError, match="no room for 96 bytes of hidden states"):
        States(1, 2, tmp_path).write(0, slice(0, 1), torch.zeros(1, 3, 4))
    assert not list(tmp_path.iterdir())
