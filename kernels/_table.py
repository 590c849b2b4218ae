"""Which family of kernels serves a shape, and with what tiles: numbers only, no code to tune.

``choose`` names the family, ``config`` the tiles of one of its kernels. ``CONFIGS`` is also what
``benchmarks/aot_report.py`` compiles ahead of time and checks for spills, shared memory and
tensor-core instructions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is asked of the op, as far as the choice depends on it."""

    classes: int
    rows_x: int
    rows_y: int
    columns: int
    kernel: str  # "gaussian" or "polynomial"
    precision: str  # "highest", "high" or "medium"
    value: bool
    grad_x: bool
    grad_y: bool
    ragged: bool = False

    @property
    def gradients(self) -> int:
        """How many of the two gradients are wanted."""
        return self.grad_x + self.grad_y


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A family, and the problems it is chosen for: the first rule that matches wins."""

    family: str
    reason: str
    kernels: tuple[str, ...] = ("gaussian",)
    gradients: tuple[int, ...] = (0, 1, 2)
    precisions: tuple[str, ...] = ("highest", "high", "medium")
    max_columns: int | None = None
    max_rows: int | None = None  # rows of x and y together
    max_classes: int | None = None
    min_columns: int = 1
    min_rows: int = 1
    min_classes: int = 1

    def matches(self, problem: Problem) -> bool:
        """Whether this family is for ``problem``."""
        rows = problem.rows_x + problem.rows_y
        return (
            problem.kernel in self.kernels
            and problem.gradients in self.gradients
            and problem.precision in self.precisions
            and self.min_columns <= problem.columns <= (self.max_columns or problem.columns)
            and self.min_rows <= rows <= (self.max_rows or rows)
            and self.min_classes <= problem.classes <= (self.max_classes or problem.classes)
        )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The tiles of one Triton kernel.

    Ahead of time a kernel's signature follows from its argument names: ``*_ptr`` is a pointer to
    float32 unless ``pointers`` says otherwise, ``parameters`` a tuple of one float for a Gaussian
    and two for a polynomial, ``D`` and ``*_stride`` integers divisible by 16, anything else an
    integer.
    """

    kernel: str  # "module.function", the module without the leading "_triton_"
    products: str  # PRECISION of ``dot``; "none" where a kernel multiplies nothing
    blocks: Mapping[str, int]  # constexprs by name
    warps: int
    stages: int = 2
    architectures: tuple[int, ...] = (80, 90)
    tensor_cores: str = "none"  # on sm_90: "wgmma", "mma" or "none"
    constants: Mapping[str, object] = field(default_factory=dict)  # further constexprs to compile
    pointers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


RULES: tuple[Rule, ...] = (
    Rule(
        family="value",
        gradients=(0,),
        kernels=("gaussian", "polynomial"),
        reason="no gradient: sums of tiles, no matrix is kept",
    ),
    Rule(
        family="small",
        gradients=(1, 2),
        kernels=("gaussian", "polynomial"),
        max_rows=192,
        min_classes=32,
        reason="enough programs to fill a chip: everything in one launch, no pre-pass",
    ),
    Rule(
        family="split",
        gradients=(1, 2),
        kernels=("gaussian", "polynomial"),
        max_rows=512,
        max_classes=31,
        min_columns=128,
        reason="few tiles: columns are split over programs, three launches, no pre-pass",
    ),
    Rule(
        family="stream",
        gradients=(1, 2),
        kernels=("gaussian", "polynomial"),
        min_rows=1024,
        max_columns=128,
        reason="many rows of few columns: no matrix of weights to write and read",
    ),
    Rule(
        family="tile",
        kernels=("gaussian", "polynomial"),
        reason="serves everything: a matrix of weights, then a product with the points",
    ),
)

_ELEMENTS = {"pairs_ptr": "fp64", "counts_ptr": "i32"}
_BF16 = dict.fromkeys(("stacked_ptr", "points_ptr", "a_ptr", "b_ptr"), "bf16")
_LENGTHS = {"x_lengths_ptr": "i64", "y_lengths_ptr": "i64"}


def _plain(kernel: str, blocks: Mapping[str, int], **others: Any) -> Config:
    pointers = {**_ELEMENTS, **_LENGTHS}
    return Config(
        kernel=kernel, products="none", blocks=blocks, warps=4, pointers=pointers, **others
    )


PREPASS = (
    _plain("prepass.sums_kernel", {"BLOCK_N": 32, "BLOCK_D": 128}),
    _plain("prepass.stacked_kernel", {"BLOCK_N": 16, "BLOCK_D": 256}, constants={"CENTRE": True}),
    _plain(
        "prepass.elements_kernel",
        {"BLOCK_N": 1024},
        constants={"MEAN_BANDWIDTH": True, "HAS_BANDWIDTH": False},
    ),
    _plain("value.finish_kernel", {"BLOCK_N": 1024}),
)


def _tile(
    kernel: str, products: str, blocks: tuple[int, int, int], warps: int, **others: Any
) -> Config:
    names = ("BLOCK_M", "BLOCK_N" if kernel == "tile.weights_kernel" else "BLOCK_K", "BLOCK_D")
    return Config(
        kernel=kernel,
        products=products,
        blocks=dict(zip(names, blocks, strict=True)),
        warps=warps,
        pointers={**_ELEMENTS, **(_BF16 if products == "bf16" else {})},
        **others,
    )


_BOTH: dict[str, Any] = {"stages": 3, "tensor_cores": "wgmma"}
_NEW: dict[str, Any] = {**_BOTH, "architectures": (90,)}
_OLD: dict[str, Any] = {"stages": 3, "architectures": (80,)}
# 64 rows per block: class-wise samples of 90 and 180 rows waste less than with 128, and 64 is the
# least that wgmma takes
TILE = (
    _tile("tile.weights_kernel", "tf32x3", (64, 128, 32), 8, **_BOTH),
    _tile("tile.weights_kernel", "bf16x3", (64, 128, 32), 8, **_BOTH),
    _tile("tile.weights_kernel", "bf16", (64, 128, 64), 8, **_BOTH),
    _tile("tile.weights_kernel", "ieee", (64, 64, 16), 8),
    _tile("tile.pull_kernel", "tf32x3", (64, 32, 128), 8, **_BOTH),
    _tile("tile.pull_kernel", "bf16x3", (64, 32, 128), 8, **_NEW),
    _tile("tile.pull_kernel", "bf16x3", (64, 32, 64), 4, **_OLD, reason="twice as wide spills"),
    _tile("tile.pull_kernel", "bf16", (64, 64, 128), 8, **_BOTH, reason="4 warps spill"),
    _tile("tile.pull_kernel", "ieee", (64, 32, 16), 8),
)


def _value(products: str, side: int, depth: int, warps: int, **others: Any) -> Config:
    return Config(
        kernel="value.sums_kernel",
        products=products,
        blocks={"BLOCK_M": side, "BLOCK_N": side, "BLOCK_D": depth},
        warps=warps,
        constants={"GROUP": 8},
        pointers={**_ELEMENTS, **(_BF16 if products == "bf16" else {})},
        **others,
    )


VALUE = (
    _value("tf32x3", 128, 32, 8, **_NEW),
    _value("bf16x3", 128, 32, 8, **_NEW),
    _value("bf16", 128, 64, 8, **_BOTH),
    _value("tf32x3", 64, 32, 4, **_OLD, reason="128 rows spill"),
    _value("bf16x3", 64, 32, 4, **_OLD, reason="128 rows spill"),
    _value("ieee", 64, 16, 4, reason="8 warps spill"),
)


_DIVISIONS = {
    "members_ptr": "u8",
    **dict.fromkeys(("within_ptr", "touching_ptr", "all_ptr"), "fp64"),
}


def _permute(products: str, side: int, depth: int, warps: int, **others: Any) -> Config:
    return Config(
        kernel="permute.divisions_kernel",
        products=products,
        blocks={"BLOCK_M": side, "BLOCK_D": depth, "BLOCK_B": 64},
        warps=warps,
        pointers={**_DIVISIONS, **(_BF16 if products == "bf16" else {})},
        **others,
    )


# zeros and ones go through tensor cores even where distances do not
PERMUTE = (
    _permute("tf32x3", 64, 32, 8, architectures=(90,), tensor_cores="wgmma"),
    _permute("tf32x3", 64, 16, 8, architectures=(80,), reason="steps of 32 spill"),
    _permute("bf16x3", 64, 32, 8, tensor_cores="wgmma"),
    _permute("bf16", 128, 64, 8, tensor_cores="wgmma"),
    _permute("ieee", 64, 16, 8, tensor_cores="wgmma"),
)


def _small(
    kernel: str, products: str, blocks: tuple[int, ...], warps: int, **others: Any
) -> Config:
    gradient = kernel == "small.small_kernel"
    names = ("BLOCK_M", "BLOCK_OTHER", "BLOCK_OWN", "BLOCK_D")
    lengths = ("other_lengths_ptr", "own_lengths_ptr", "lengths_ptr")
    return Config(
        kernel=kernel,
        products=products,
        blocks=dict(
            zip(names if gradient else ("BLOCK_M", "BLOCK_N", "BLOCK_D"), blocks, strict=True)
        ),
        warps=warps,
        constants={
            "HAS_OTHER_LENGTHS": True,
            "HAS_OWN_LENGTHS": True,
            "HAS_LENGTHS": True,
            "MEAN_BANDWIDTH": True,
            "HAS_BANDWIDTH": False,
            "VALUE": "all",
        },
        pointers={"totals_ptr": "fp64", **dict.fromkeys(lengths, "i64")},
        **others,
    )


_SMALL: dict[str, Any] = {**_NEW, "stages": 1}
# the tiles are as large as the samples; with 256 other rows the exact products spill
SMALL = (
    _small("small.small_kernel", "tf32x3", (64, 64, 128, 16), 8, **_SMALL),
    _small("small.small_kernel", "tf32x3", (64, 128, 64, 16), 8, **_SMALL),
    _small("small.small_kernel", "bf16x3", (64, 64, 128, 32), 8, **_SMALL),
    _small("small.small_kernel", "bf16x3", (64, 128, 64, 32), 8, **_SMALL),
    _small("small.small_kernel", "bf16", (64, 64, 128, 32), 8, **_SMALL),
    _small("small.small_kernel", "bf16", (64, 256, 64, 32), 8, **_SMALL),
    _small("small.small_kernel", "ieee", (32, 128, 128, 16), 8, stages=1, architectures=(90,)),
    _small("small.small_within_kernel", "tf32x3", (64, 128, 32), 8, **_NEW),
    _small("small.small_within_kernel", "bf16x3", (64, 128, 32), 8, **_NEW),
    _small("small.small_within_kernel", "bf16", (64, 256, 32), 8, **_NEW),
    _small("small.small_within_kernel", "ieee", (64, 128, 16), 8, architectures=(90,)),
)


def _split(
    kernel: str, products: str, blocks: Mapping[str, int], warps: int, **others: Any
) -> Config:
    pointers = {"totals_ptr": "fp64", **_LENGTHS}
    constants = {"MEAN_BANDWIDTH": True, "HAS_BANDWIDTH": False}
    return Config(
        kernel=kernel,
        products=products,
        blocks=blocks,
        warps=warps,
        constants=constants,
        pointers=pointers,
        **others,
    )


_PAIRS = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_D": 32}
_PULLS = {"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 64}
SPLIT = (
    _split("split.products_kernel", "tf32x3", _PAIRS, 8, **_NEW),
    _split("split.products_kernel", "bf16x3", _PAIRS, 8, **_NEW),
    _split("split.products_kernel", "bf16", _PAIRS, 8, **_NEW),
    _split(
        "split.weights_kernel",
        "none",
        # BLOCK_K is what is needed, at most this
        {"BLOCK_R": 8, "BLOCK_K": 512, "BLOCK_N": 128, "BLOCK_D": 256},
        4,
        architectures=(90,),
    ),
    _split("split.pull_kernel", "tf32x3", _PULLS, 8, **_NEW, reason="4 warps spill"),
    _split("split.pull_kernel", "bf16x3", _PULLS, 4, **_NEW),
    _split("split.pull_kernel", "bf16", _PULLS, 4, **_NEW),
)


def _stream(products: str, blocks: tuple[int, int, int], warps: int, **others: Any) -> Config:
    stored = {"stacked_ptr": "bf16"} if products == "bf16" else {}
    return Config(
        kernel="stream.stream_kernel",
        products=products,
        blocks=dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_D"), blocks, strict=True)),
        warps=warps,
        constants={"VALUE": "all"},
        pointers={**_ELEMENTS, "totals_ptr": "fp64", **stored},
        **others,
    )


# BLOCK_D holds all columns: one size up, each of these spills
STREAM = (
    _stream("tf32x3", (64, 32, 32), 8, **{**_NEW, "stages": 1}),
    _stream("bf16x3", (64, 32, 64), 8, **{**_NEW, "stages": 1}),
    _stream("bf16", (64, 32, 128), 8, **{**_NEW, "stages": 2}),
    _stream(
        "ieee", (64, 32, 16), 8, architectures=(90,), reason="twice as many spill on triton 3.6"
    ),
)

CONFIGS: tuple[Config, ...] = (*PREPASS, *TILE, *VALUE, *PERMUTE, *SMALL, *SPLIT, *STREAM)


def choose(problem: Problem) -> str:
    """The family that serves ``problem``; the last rule takes whatever is left."""
    return next(rule.family for rule in RULES if rule.matches(problem))


def products(precision: str, columns: int) -> str:
    """How tiles are multiplied: ``PRECISION`` of ``dot``."""
    if columns <= 16 and precision != "medium":
        return "ieee"  # as fast as three passes when there is one step, and exact
    return {"highest": "tf32x3", "high": "bf16x3", "medium": "bf16"}[precision]


@cache
def config(kernel: str, products: str, architecture: int) -> Config:
    """The tiles of ``kernel`` on the newest listed architecture that ``architecture`` includes."""
    fitting = [
        config
        for config in CONFIGS
        if config.kernel == kernel
        and config.products in (products, "none")
        and (config.products == "none" or min(config.architectures) <= architecture)
    ]
    return max(fitting, key=lambda config: min(config.architectures))


def memory_bound(kernel: str) -> Config:
    """The blocks of a kernel that multiplies nothing: the same everywhere."""
    return config(kernel, "none", 0)
