"""The files of which a killed training goes on."""

from pathlib import Path

import torch

from sparsebench.steps.recover import resume


def test_a_bit_of_any_byte_is_found(tmp_path: Path) -> None:
    values = {
        "floats": torch.arange(5.0),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3),
        "nothing": torch.zeros(0, 4),
        7: [1.5, None, float("inf"), "words", (1, {2: 0.1})],
    }
    folder = resume.ResumeFolder(tmp_path / "kept")
    folder.write("file", {"is": (1, 2)}, values)
    path, belongs = tmp_path / "kept" / "file", {"is": [1, 2]}
    data, again = path.read_bytes(), folder.read("file", belongs)
    assert again[7] == [1.5, None, float("inf"), "words", [1, {2: 0.1}]]
    tensors = [name for name, value in values.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(again[name], values[name]) and again[name].dtype == values[name].dtype for name in tensors)
    path.unlink()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        assert folder.read("file", belongs) is None and not path.exists()
    assert len(folder.notes) == len(data) > 500
