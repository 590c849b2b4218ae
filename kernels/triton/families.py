"""Which family of kernels serves a shape: data, no code to tune. ``choose`` names it."""

from dataclasses import dataclass


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


def choose(problem: Problem) -> str:
    """The family that serves ``problem``; the last rule takes whatever is left."""
    return next(rule.family for rule in RULES if rule.matches(problem))


def products(precision: str, columns: int) -> str:
    """How tiles are multiplied: ``PRECISION`` of ``dot``."""
    if columns <= 16 and precision != "medium":
        return "ieee"  # as fast as three passes when there is one step, and exact
    return {"highest": "tf32x3", "high": "bf16x3", "medium": "bf16"}[precision]
