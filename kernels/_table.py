"""Which family of kernels serves a shape, and with what tiles: numbers only, no code to tune.

``choose`` names the family, ``config`` the tiles of one of its kernels. ``CONFIGS`` is also what
``benchmarks/aot_report.py`` compiles ahead of time and checks for spills, shared memory and
tensor-core instructions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        family="tile",
        kernels=("gaussian", "polynomial"),
        reason="serves everything: a matrix of weights, then a product with the points",
    ),
)

_ELEMENTS = {"pairs_ptr": "fp64", "counts_ptr": "i32"}
_BF16 = {"stacked_ptr": "bf16", "a_ptr": "bf16", "b_ptr": "bf16"}
_VALUE = {"constants": {"GROUP": 8}, "kernel": "value.sums_kernel"}

# 64 rows per block: class-wise samples of 90 and 180 rows waste less than with 128, and 64 is the
# least that wgmma takes
TILE = (
    Config(
        kernel="tile.weights_kernel",
        products="tf32x3",
        blocks={"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_D": 32},
        warps=8,
        stages=3,
        tensor_cores="wgmma",
        pointers=_ELEMENTS,
    ),
    Config(
        kernel="tile.pull_kernel",
        products="tf32x3",
        blocks={"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 128},
        warps=8,
        stages=3,
        tensor_cores="wgmma",
    ),
    Config(
        kernel="tile.weights_kernel",
        products="bf16x3",
        blocks={"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_D": 32},
        warps=8,
        stages=3,
        tensor_cores="wgmma",
        pointers=_ELEMENTS,
    ),
    Config(
        kernel="tile.pull_kernel",
        products="bf16x3",
        blocks={"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 128},
        warps=8,
        stages=3,
        architectures=(90,),
        tensor_cores="wgmma",
    ),
    Config(
        kernel="tile.pull_kernel",
        products="bf16x3",
        blocks={"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 64},
        warps=4,
        stages=3,
        architectures=(80,),
        reason="twice as wide spills on sm_80",
    ),
    Config(
        kernel="tile.weights_kernel",
        products="bf16",
        blocks={"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_D": 64},
        warps=4,
        stages=3,
        tensor_cores="wgmma",
        pointers={**_ELEMENTS, **_BF16},
    ),
    Config(
        kernel="tile.pull_kernel",
        products="bf16",
        blocks={"BLOCK_M": 64, "BLOCK_K": 64, "BLOCK_D": 128},
        warps=8,
        stages=3,
        tensor_cores="wgmma",
        pointers=_BF16,
        reason="4 warps spill",
    ),
    Config(
        kernel="tile.weights_kernel",
        products="ieee",
        blocks={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 16},
        warps=8,
        pointers=_ELEMENTS,
    ),
    Config(
        kernel="tile.pull_kernel",
        products="ieee",
        blocks={"BLOCK_M": 64, "BLOCK_K": 32, "BLOCK_D": 16},
        warps=8,
    ),
)

VALUE = (
    Config(
        **_VALUE,
        products="tf32x3",
        blocks={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 32},
        warps=8,
        stages=3,
        architectures=(90,),
        tensor_cores="wgmma",
        pointers=_ELEMENTS,
    ),
    Config(
        **_VALUE,
        products="bf16x3",
        blocks={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 32},
        warps=8,
        stages=3,
        architectures=(90,),
        tensor_cores="wgmma",
        pointers=_ELEMENTS,
    ),
    Config(
        **_VALUE,
        products="bf16",
        blocks={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_D": 64},
        warps=8,
        stages=3,
        tensor_cores="wgmma",
        pointers={**_ELEMENTS, **_BF16},
    ),
    *(
        Config(
            **_VALUE,
            products=three_passes,
            blocks={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32},
            warps=4,
            stages=3,
            architectures=(80,),
            pointers=_ELEMENTS,
            reason="128 rows spill on sm_80",
        )
        for three_passes in ("tf32x3", "bf16x3")
    ),
    Config(
        **_VALUE,
        products="ieee",
        blocks={"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 16},
        warps=4,
        pointers=_ELEMENTS,
    ),
)

CONFIGS: tuple[Config, ...] = (*TILE, *VALUE)


def choose(problem: Problem) -> str:
    """The family that serves ``problem``; the last rule takes whatever is left."""
    return next(rule.family for rule in RULES if rule.matches(problem))


def products(precision: str, columns: int) -> str:
    """How tiles are multiplied: ``PRECISION`` of ``dot``."""
    if columns <= 16 and precision != "medium":
        return "ieee"  # as fast as three passes when there is one step, and exact
    return {"highest": "tf32x3", "high": "bf16x3", "medium": "bf16"}[precision]


def config(kernel: str, products: str, architecture: int) -> Config:
    """The tiles of ``kernel`` on the newest listed architecture that ``architecture`` includes."""
    fitting = [
        config
        for config in CONFIGS
        if config.kernel == kernel
        and config.products in (products, "none")
        and min(config.architectures) <= architecture
    ]
    return max(fitting, key=lambda config: min(config.architectures))
