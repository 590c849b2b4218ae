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
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()  # shared: no two graphs run at once
            # a graph records what is launched on its stream: without one of this device it stays
            # empty, and replaying it does nothing
            self._stream = torch.cuda.Stream(device)
        self._replays = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, *key: object) -> None:
        """Run the function; the first call of a key captures it and waits for the device.

        Raises:
            RuntimeError: if the captured graph is empty.
        """
        with torch.cuda.device(self._device):
            captured = key in self._graphs
            if not captured:
                self._graphs[key] = self._capture(key)
            self._graphs[key].replay()
            if not captured and int(self._replays) != 1:
                raise RuntimeError(f"the CUDA graph captured on {self._device} is empty")

    def _capture(self, key: tuple[object, ...]) -> torch.cuda.CUDAGraph:
        before = [tensor.clone() for tensor in self._updated]
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                self._function(*key)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: the loader's threads keep pinning and uploading during the capture
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            self._function(*key)
            self._replays.add_(1)
        for tensor, value in zip(self._updated, before, strict=True):
            tensor.copy_(value)
        self._replays.zero_()
        return graph
