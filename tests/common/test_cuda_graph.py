"""Capturing on the device of the run, on a stand-in for CUDA: launches on streams, and graphs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from m3d_fast.common.cuda_graph import WARM_UPS, CudaGraphRunner


class Graph:
    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    def replay(self) -> None:
        for launch in self.launches:
            launch()


class Cuda:
    """What ``torch.cuda`` does: a launch goes to the current stream of its tensors' device."""

    CUDAGraph = Graph

    def __init__(self) -> None:
        self.current = 0
        self.streams: dict[int, SimpleNamespace] = {}
        self.capturing: tuple[SimpleNamespace, Graph] | None = None

    def Stream(self, device: torch.device | None = None) -> SimpleNamespace:
        number = self.current if device is None else device.index
        return SimpleNamespace(number=number, wait_stream=lambda other: None)

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        return self.streams.setdefault(device.index, self.Stream(device))

    def graph_pool_handle(self) -> int:
        return 1

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.current = self.current, device.index
        yield
        self.current = before

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before = self.streams.get(stream.number)
        self.streams[stream.number] = stream
        with self.device(torch.device("cuda", stream.number)):
            yield
        self.streams[stream.number] = before or self.Stream(torch.device("cuda", stream.number))

    @contextmanager
    def graph(self, graph: Graph, stream: SimpleNamespace | None = None, **_) -> Iterator[None]:
        stream = stream or self.Stream()  # on the current device, as torch's default
        with self.stream(stream):
            self.capturing = stream, graph
            yield
            self.capturing = None

    def launch(self, device: torch.device, work: Callable[[], None]) -> None:
        if self.capturing and self.current_stream(device) is self.capturing[0]:
            self.capturing[1].launches.append(work)
        else:
            work()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("CUDAGraph", "Stream", "current_stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return cuda


class Counter:
    """A tensor of a device that counts what is launched; its own launches can be captured."""

    def __init__(self, cuda: Cuda, device: torch.device) -> None:
        self.cuda, self.device, self.count = cuda, device, 0

    def add_(self, number: int) -> None:
        def work() -> None:
            self.count += number

        self.cuda.launch(self.device, work)

    def zero_(self) -> None:
        self.count = 0

    def clone(self) -> int:
        return self.count

    def copy_(self, count: int) -> None:
        self.count = count

    def __int__(self) -> int:
        return self.count


@pytest.fixture
def runner(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    def build(index: int, function: Callable[[Counter], None]) -> tuple[CudaGraphRunner, Counter]:
        device = torch.device("cuda", index)
        state = Counter(cuda, device)
        monkeypatch.setattr(torch, "zeros", lambda *_, device, **__: Counter(cuda, device))
        return CudaGraphRunner(lambda: function(state), [state], device), state

    return build


@pytest.mark.parametrize("index", [0, 1, 3])
def test_every_call_is_one_step_on_any_device(index: int, runner) -> None:
    calls = []

    def step(state: Counter) -> None:
        calls.append(1)
        state.add_(1)

    run, state = runner(index, step)
    for number in range(1, 4):
        run()
        assert state.count == number, "the first call warms up and captures, and counts once"
    assert len(calls) == WARM_UPS + 1, "replayed, not called"


def test_an_empty_graph_is_an_error(cuda: Cuda, runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured on a stream of another device, as torch does when it is not told which."""
    run, _ = runner(1, lambda state: state.add_(1))
    graph = cuda.graph

    def on_the_first_device(captured: Graph, **_):
        return graph(captured, cuda.Stream(torch.device("cuda", 0)))

    monkeypatch.setattr(torch.cuda, "graph", on_the_first_device)
    with pytest.raises(RuntimeError, match="the CUDA graph captured on cuda:1 is empty"):
        run()
