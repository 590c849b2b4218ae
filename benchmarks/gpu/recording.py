"""What launches would compile, recorded without a GPU: the real host code, Triton's real keys."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class Specialization(NamedTuple):
    """A kernel for arguments of these types, alignments and constants."""

    kernel: JITFunction
    signature: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Kernel, module, constants by name, warps and stages."""
        names = [parameter.name for parameter in self.kernel.params]
        named = {names[path[0]]: value for path, value in self.constants.items() if len(path) == 1}
        return {
            "kernel": self.kernel.fn.__name__,
            "family": self.kernel.fn.__module__.rsplit(".", 1)[-1],
            "constants": {name: repr(value) for name, value in named.items()},
            "warps": self.options["num_warps"],
            "stages": self.options["num_stages"],
        }


class _Driver:
    """Stands in for CUDA's: a device of one architecture, whose launches do nothing."""

    utils = None

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


class _Launch:
    """Stands in for a compiled kernel."""

    function = packed_metadata = None

    def launch_metadata(self, *arguments: object) -> None:
        """Describe nothing."""

    def run(self, *arguments: object) -> None:
        """Launch nothing."""


def record_launches(target: GPUTarget, record: Callable[[Specialization], None]) -> None:
    """From now on, launches in this process call ``record`` for what they would compile.

    Raises:
        RuntimeError: Triton interprets kernels.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("expected kernels to compile: set TRITON_INTERPRET=0")
    driver.set_active(_Driver(target))

    def compile(
        self: JITFunction,
        key: str,
        signature: dict[str, Any],
        device: int,
        constants: dict[tuple[int, ...], Any],
        options: Any,
        attributes: dict[tuple[int, ...], Any],
        *_: object,
    ) -> _Launch:
        record(Specialization(self, signature, constants, attributes, dict(options.__dict__)))
        launch = self.device_caches[device][0][key] = _Launch()
        return launch

    JITFunction._do_compile = compile
