"""CUDA graphs: the hundreds of kernels of a step in one launch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 2  # calls in which cuDNN compares its algorithms, compilers compile, allocators fill


class CudaGraphRunner:
    """Calls ``function(*key)``: captures it once per key as a CUDA graph, then replays the graph.

    The function must only read and write tensors at fixed addresses, draw no random numbers and
    never wait for the device.

    Args:
        function: as above; its result is dropped.
        updated: tensors it updates from their own values; the warm-up leaves them unchanged.
        device: a CUDA device.
    """

    def __init__(
        self, function: Callable[..., None], updated: Sequence[Tensor], device: torch.device
    ) -> None:
        self._function, self._updated, self._device = function, updated, device
        self._graphs: dict[tuple[object, ...], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()  # shared: no two graphs run at the same time

    def __call__(self, *key: object) -> None:
        """Run the function; the first call of a key captures it and waits for the device."""
        if key not in self._graphs:
            self._graphs[key] = self._capture(key)
        self._graphs[key].replay()

    def _capture(self, key: tuple[object, ...]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self._updated]
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._function(*key)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's threads keep pinning and uploading during the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._function(*key)
        for tensor, value in zip(self._updated, before, strict=True):
            tensor.copy_(value)
        return graph
