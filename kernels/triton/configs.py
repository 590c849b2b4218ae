"""What a row of a tile table is, and the search in a table; each launcher holds its own table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


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
    table: Iterable[Config], kernel: Any, input_precision: str, architecture: int, **rows: int
) -> Config | None:
    """Find the row of a table for a kernel on a device.

    Args:
        table: where to search.
        kernel: the jit function.
        input_precision: how its tiles are multiplied.
        architecture: compute capability of the device times ten.
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
        and min(config.architectures) <= architecture
        and all(config.blocks[name] >= size for name, size in rows.items())
    ]
    return min(
        fitting,
        key=lambda config: (-min(config.architectures), sum(config.blocks[name] for name in rows)),
        default=None,
    )
