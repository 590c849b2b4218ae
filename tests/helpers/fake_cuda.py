"""A CUDA device without a GPU: the host code of the Triton kernels runs, nothing is launched.

``install`` puts a driver in the place of Triton's. Launchers, workspace, Triton's binding of
arguments and its specialisation keys are the real ones; where Triton would compile a kernel it
gets a stand-in that logs its launches. Samples are on the CPU and presented as CUDA tensors:
memory that no program touches costs nothing, so that any size can be tried.

Needs a process in which Triton's interpreter is off, hence ``tests/helpers/launch_sweep.py``.
"""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from m3d_fast.kernels.triton import dispatch
from m3d_fast.kernels.triton.configs import Chip

SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}


@dataclass(frozen=True)
class Launch:
    """One launch as the driver would see it."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors as well
    warps: int
    stages: int
    dependent: bool  # may start before the launch before it has ended


@dataclass
class Log:
    """What happened since the driver was installed."""

    launches: list[Launch] = field(default_factory=list)
    compilations: list[str] = field(default_factory=list)  # of which kernel, with which constants


class _Binary:
    """A compiled kernel that logs instead of running."""

    function = None
    packed_metadata = None

    def __init__(self, log: Log, kernel: Any, options: Any) -> None:
        self.log, self.kernel, self.options = log, kernel, options

    def launch_metadata(self, *_: object) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        # the grid, the stream, the function, two kinds of metadata, two hooks
        grid, bound = arguments[:3], arguments[9:]
        names = [parameter.name for parameter in self.kernel.params]
        launch = Launch(
            self.kernel.fn.__name__,
            grid,
            dict(zip(names, bound, strict=True)),
            self.options.num_warps,
            self.options.num_stages,
            self.options.launch_pdl,
        )
        self.log.launches.append(launch)


class _Driver:
    """The part of a driver that a launch needs; the device's number is its architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


def install(architecture: int) -> Log:
    """Present the CPU, to the rest of this process, as a CUDA device that has compiled nothing."""
    log = Log()

    def compile_nothing(
        self: Any, key: str, signature: Any, device: int, constexprs: Any, options: Any, *_: Any
    ) -> _Binary:
        binary = _Binary(log, self, options)
        self.device_caches[device][0][key] = binary
        constants = {
            self.params[path[0]].name: value
            for path, value in constexprs.items()
            if self.params[path[0]].is_constexpr
        }
        log.compilations.append(f"{self.fn.__name__} {constants}")
        return binary

    JITFunction._do_compile = compile_nothing
    dispatch.read_chip = lambda device: Chip(architecture, SHARED_MEMORY[architecture])
    dispatch.explain_refusal = lambda device: None
    for config in dispatch.CONFIGS:
        config.kernel.device_caches.pop(architecture, None)
    driver.set_active(_Driver(architecture))
    return log


def describe(argument: object) -> object:
    """Put an argument into JSON: of a tensor where it begins and how much memory follows."""
    if not isinstance(argument, Tensor):
        return argument
    storage = argument.untyped_storage().nbytes() // argument.element_size()
    return {
        "dtype": str(argument.dtype).removeprefix("torch."),
        "shape": list(argument.shape),
        "strides": list(argument.stride()),
        "address": argument.data_ptr(),
        "elements": storage - argument.storage_offset(),
    }
