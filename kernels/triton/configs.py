"""With what tiles each kernel runs: numbers only, no code to tune; ``config`` finds them.

``CONFIGS`` and ``VARIANTS`` are also what ``benchmarks/aot_report.py`` compiles ahead of time and
checks for spills, shared memory and tensor-core instructions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Config:
    """The tiles of one Triton kernel.

    Ahead of time a kernel's signature follows from its argument names: ``*_ptr`` is a pointer to
    float32 unless ``pointers`` says otherwise, ``parameters`` a tuple of one float for a Gaussian
    and two for a polynomial, ``D`` and ``*_stride`` integers divisible by 16, anything else an
    integer.
    """

    kernel: str  # "module.function", the module in the folder jit
    products: str  # PRECISION of ``dot``; "none" where a kernel multiplies nothing
    blocks: Mapping[str, int]  # constexprs by name
    warps: int
    stages: int = 2
    architectures: tuple[int, ...] = (80, 90)
    tensor_cores: str = "none"  # on sm_90: "wgmma", "mma" or "none"
    constants: Mapping[str, object] = field(default_factory=dict)  # further constexprs to compile
    pointers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


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
    _value("ieee", 32, 16, 4, reason="64 rows spill for a polynomial of half precision"),
)
# a polynomial reads the samples as they are
VARIANTS = tuple(
    replace(
        VALUE[-1],
        constants={**VALUE[-1].constants, "KERNEL": "polynomial", "ORDER": 3},
        pointers={**VALUE[-1].pointers, "a_ptr": dtype, "b_ptr": dtype},
    )
    for dtype in ("fp16", "bf16")
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
    _small(
        "small.small_kernel",
        "tf32x3",
        (32, 128, 64, 16),
        8,
        **{**_SMALL, "tensor_cores": "mma"},
        reason="64 own rows, which wgmma takes, spill on triton 3.6",
    ),
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
    _split("split_gradient.pull_kernel", "tf32x3", _PULLS, 8, **_NEW, reason="4 warps spill"),
    _split("split_gradient.pull_kernel", "bf16x3", _PULLS, 4, **_NEW),
    _split("split_gradient.pull_kernel", "bf16", _PULLS, 4, **_NEW),
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
