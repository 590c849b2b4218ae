"""Files of tensors: the same content gives the same bytes, however it was given."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3d_fast.common import tensors
from m3d_fast.common.tensors import read_tensors, write_tensors


def test_parts_become_one_tensor_and_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE", 7)  # numbers: many pieces per part
    whole, labels = torch.randn(10, 3, 4), torch.arange(10)
    metadata = {"format": "test", "classes": ["a", "7"], "ipc": 1, "name": "7", "text": "words"}
    write_tensors(tmp_path / "whole", {"images": whole, "labels": labels}, metadata)
    parts = [whole[:3], whole[3:4], whole[4:].flip(0).flip(0)]
    write_tensors(tmp_path / "parts", {"labels": labels, "images": parts}, metadata)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "parts").read_bytes()
    read = load_file(tmp_path / "parts")  # by the library, which checks the layout
    assert torch.equal(read["images"], whole)
    assert torch.equal(read["labels"], labels)
    assert read_tensors(tmp_path / "parts", "test")[1] == metadata
