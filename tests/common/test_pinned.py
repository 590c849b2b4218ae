"""Page-locked memory is registered in full, once, and given back; on a stand-in for the driver."""

import gc
from types import SimpleNamespace

import pytest
import torch

from m3d_fast.common.pinned import empty_pinned


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Bytes that are locked now, by address."""
    ranges: dict[int, int] = {}

    def register(address: int, size: int, flags: int) -> int:
        assert address not in ranges
        ranges[address] = size
        return 0

    cudart = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=ranges.pop)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    return ranges


def test_it_locks_what_was_requested_until_the_last_view_is_gone(locked: dict[int, int]) -> None:
    tensor = empty_pinned((5, 3, 100))
    assert locked == {tensor.data_ptr(): 4 * 1500}, "1500 numbers, not 2048"
    view = tensor[2:]
    del tensor
    gc.collect()
    assert sum(locked.values()) == 6000
    del view
    gc.collect()
    assert not locked


def test_other_types_layouts_and_nothing_at_all(locked: dict[int, int]) -> None:
    images = empty_pinned((2, 3, 4, 4), dtype=torch.uint8, memory_format=torch.channels_last)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert list(locked.values()) == [96]
    assert empty_pinned((0, 3)).shape == (0, 3)
    assert len(locked) == 1


def test_a_refusal_of_the_driver_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = SimpleNamespace(cudaHostRegister=lambda *_: 2)

    def check(code: int) -> None:
        if code:
            raise RuntimeError(f"CUDA error {code}")

    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    with pytest.raises(RuntimeError, match="CUDA error 2"):
        empty_pinned((3,))
