"""Page-locked host memory of exactly the requested size, for asynchronous copies to a GPU."""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


def empty_pinned(
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """An uninitialised, page-locked tensor on the host.

    torch's own (``pin_memory=True``) takes the next power of two, up to twice the bytes, and keeps
    them when the tensor is freed; this takes what it says and gives it back. No copy of it may be
    under way when the last view of it is freed: unlike torch, it does not wait for copies.

    Args:
        shape: of the tensor.
        dtype: of the tensor.
        memory_format: of the tensor.

    Raises:
        RuntimeError: if the driver refuses, for instance because the memory cannot be locked.
    """
    tensor = torch.empty(tuple(shape), dtype=dtype, memory_format=memory_format)
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0:
        return tensor
    cudart, address = torch.cuda.cudart(), storage.data_ptr()
    torch.cuda.check_error(int(cudart.cudaHostRegister(address, storage.nbytes(), 0)))
    # a storage outlives its tensor as long as views of it do
    weakref.finalize(storage, cudart.cudaHostUnregister, address)
    return tensor
