"""What a row of a tile table is, and the search in a table; each launcher holds its own table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEAST_SHARED_MEMORY = 101376  # bytes that a program may have on sm_86, sm_89 and sm_120


class Chip(NamedTuple):
    """What decides which tiles a device can run."""

    architecture: int  # compute capability times ten
    shared_memory: int  # bytes that a program may have

    @property
    def generation(self) -> int:
        """The architecture of the data centre whose tiles this chip takes."""
        # compute capability 12 has neither wgmma nor tcgen05, but the instructions of 8.0
        return 80 if self.architecture >= 120 else self.architecture


@dataclass(frozen=True, kw_only=True)
class Config:
    """The tiles of one Triton kernel, for one way to multiply them.

    Attributes:
        kernel: the jit function.
        input_precision: ``INPUT_PRECISION`` of ``dot`` ("ieee", "tf32x3", "bf16x3" or "bf16");
            "none" for a kernel without matrix products.
        blocks: block sizes, constexprs by name.
        warps: per program.
        stages: of the software pipeline.
        architectures: compute capabilities times ten that ``benchmarks/aot_report.py`` compiles
            for; the least of them is the oldest device that may use this row.
        shared_memory: bytes that a program needs at most.
        barriers: inside loops, at most, where tensor cores multiply: how often the threads of a
            program wait for each other in a step. More than a few mean that something passes
            through shared memory.
        tensor_cores: instructions expected on sm_90: "wgmma", "mma" or "none".
        pointers: types of pointers that are not those of ``benchmarks/aot_report.py``, by name.
        constants: the same for constexprs.
        reason: why the tiles differ from those that one would expect.
    """

    kernel: Any
    input_precision: str = "none"
    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2
    architectures: tuple[int, ...] = (80, 90)
    shared_memory: int = LEAST_SHARED_MEMORY
    barriers: int = 8
    tensor_cores: str = "none"
    pointers: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the compiler."""
        # Triton's default of enable_fp_fusion is about to change, and with it bits of the results
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    @property
    def name(self) -> str:
        """Name of the kernel, as a profiler shows it."""
        return str(self.kernel.fn.__name__)


def find_config(
    table: Iterable[Config], kernel: Any, input_precision: str, chip: Chip, **rows: int
) -> Config | None:
    """Find the row of a table for a kernel on a device.

    Args:
        table: where to search.
        kernel: the jit function.
        input_precision: how its tiles are multiplied.
        chip: the device.
        rows: least sizes of blocks, by name.

    Returns:
        Of the rows that fit, one of the newest architecture, and of these the one with the smallest
        named blocks (padding is computed too); None if none fits.
    """
    fitting = [
        config
        for config in table
        if config.kernel is kernel
        and config.input_precision == input_precision
        and min(config.architectures) <= chip.generation
        and config.shared_memory <= chip.shared_memory
        and all(config.blocks[name] >= size for name, size in rows.items())
    ]
    return min(
        fitting,
        key=lambda config: (-min(config.architectures), sum(config.blocks[name] for name in rows)),
        default=None,
    )
