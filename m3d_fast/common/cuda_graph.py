"""CUDA graphs: the hundreds of kernels of a step in one launch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

WARM_UPS = 2  # calls in which cuDNN compares its algorithms, compilers compile, allocators fill


class CudaGraphRunner:
    """Calls ``function``: the first call captures it as a CUDA graph, every call replays the graph.

    The function must only read and write tensors at fixed addresses, draw no random numbers and
    never wait for the device.

    Args:
        function: as above; its result is dropped.
        updated: tensors it updates from their own values; the warm-up leaves them unchanged.
        device: a CUDA device.
    """

    def __init__(
        self, function: Callable[[], None], updated: Sequence[Tensor], device: torch.device
    ) -> None:
        self._function, self._updated, self._device = function, updated, device
        self._graph: torch.cuda.CUDAGraph | None = None
        with torch.cuda.device(device):
            # a graph records what is launched on its stream: without one of this device it stays
            # empty, and replaying it does nothing
            self._stream = torch.cuda.Stream(device)
        self._replays = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self) -> None:
        """Run the function; the first call captures it and waits for the device.

        Raises:
            RuntimeError: if the captured graph is empty.
        """
        with torch.cuda.device(self._device):
            if self._graph is not None:
                self._graph.replay()
                return
            self._graph = self._capture()
            self._graph.replay()
            if int(self._replays) != 1:
                raise RuntimeError(f"the CUDA graph captured on {self._device} is empty")

    def _capture(self) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self._updated]
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                self._function()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's threads keep pinning and uploading during the capture
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._function()
            self._replays.add_(1)
        for tensor, value in zip(self._updated, before, strict=True):
            tensor.copy_(value)
        self._replays.zero_()
        return graph
