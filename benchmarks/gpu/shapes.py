"""The shapes that families are compared at, and the least time that an H100 could take.

Floors are arithmetic: the larger of the bytes that must move, at the 3.0 TB/s that a copy was seen
to reach, and the operations: 800 TFLOP/s in bfloat16 (seen), 400 in tf32 (taken), a third of either
for three products per product, 50 in plain float32 (taken). They assume that what is symmetric is
computed once, and count nothing else.
"""

from dataclasses import dataclass

from m3d_fast.kernels import Gaussian, Polynomial
from m3d_fast.kernels.combinations import Kernel
from m3d_fast.kernels.kernel_functions import M3D_KERNEL
from m3d_fast.kernels.triton.families import choose_input_precision

BYTES_PER_SECOND = 3.0e12
FLOP_PER_SECOND = {"tf32x3": 400e12 / 3, "bf16x3": 800e12 / 3, "bf16": 800e12, "ieee": 50e12}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A problem.

    Attributes:
        sizes: C, N, M, D.
        wrt: the gradient: "y", "both", or "none" for the value alone.
        flop: operations of the gradient; of the value where that is alone.
        value_flop: operations that a value adds to the gradient.
        megabytes: read and written, in float32.
    """

    name: str
    sizes: tuple[int, int, int, int]
    wrt: str = "y"
    kernel: Kernel = M3D_KERNEL
    estimator: str = "biased"
    flop: float
    value_flop: float = 0.0
    megabytes: float

    @property
    def gradients(self) -> int:
        """Number of gradients."""
        return {"none": 0, "y": 1, "both": 2}[self.wrt]

    def compute_floor(self, precision: str, value: bool) -> float:
        """Seconds that no implementation can beat."""
        operations = self.flop + (self.value_flop if value else 0.0)
        rate = FLOP_PER_SECOND[choose_input_precision(precision, self.sizes[3])]
        return max(self.megabytes * 1e6 / BYTES_PER_SECOND, operations / rate)


_CMMD = Gaussian(sigma=10.0, scales=(1.0,))
# the most valuable first; the floors' columns: operations, those of the value, megabytes
SHAPES = tuple(
    Shape(name=name, sizes=sizes, flop=flop, value_flop=value_flop, megabytes=megabytes, **more)
    for name, sizes, flop, value_flop, megabytes, more in (
        ("low resolution, IPC 10 x 4", (10, 256, 40, 2048), 9.4e8, 1.35e9, 27.5, {}),
        ("ImageNet-100", (100, 64, 90, 512), 2.4e9, 2e8, 50, {}),
        ("ImageNet-1K", (1000, 64, 90, 512), 2.4e10, 2e9, 500, {}),
        ("two samples of 1,000", (1, 1000, 1000, 10), 1.1e8, 0, 0.2, {"wrt": "both"}),
        ("10 classes, M = 500", (10, 256, 500, 2048), 2.6e10, 1.35e9, 103, {}),
        (
            *("CMMD, 5,000 rows", (1, 5000, 5000, 768), 7.7e10, 0, 31),
            {"wrt": "none", "kernel": _CMMD},
        ),
        ("ImageNet-10", (10, 64, 90, 512), 2.4e8, 2e7, 5.0, {}),
        ("low resolution, IPC 50 x 4", (10, 256, 200, 2048), 6.7e9, 1.35e9, 53.7, {}),
        ("low resolution, IPC 1 x 4", (10, 256, 4, 2048), 8.5e7, 1.35e9, 21.6, {}),
        ("ResNetAP features", (10, 128, 90, 8192), 5.8e9, 1.35e9, 101, {}),
        ("CIFAR-100, IPC 10", (100, 256, 40, 2048), 9.4e9, 1.35e10, 275, {}),
        ("ImageNet-100, IPC 20 x 9", (100, 64, 180, 512), 7.4e9, 2e8, 87, {}),
        ("domain adaptation, 2048", (1, 64, 64, 2048), 9e7, 0, 2.1, {"wrt": "both"}),
        ("domain adaptation, 256", (1, 256, 256, 256), 1.9e8, 0, 1.0, {"wrt": "both"}),
        ("two samples of 10,000", (1, 10_000, 10_000, 100), 1.1e11, 1e10, 16, {"wrt": "both"}),
        (
            *("KID, 100 subsets", (100, 1000, 1000, 2048), 8.2e11, 0, 1638),
            {"wrt": "none", "kernel": Polynomial(), "estimator": "unbiased"},
        ),
        (
            *("CMMD, 30,000 rows", (1, 30_000, 30_000, 768), 2.8e12, 0, 184),
            {"wrt": "none", "kernel": _CMMD},
        ),
        (
            *("CMMD, 50,000 rows", (1, 50_000, 50_000, 1024), 1.03e13, 0, 410),
            {"wrt": "none", "kernel": _CMMD},
        ),
    )
)
