"""Which kernel family serves a problem: a table, searched by ``choose_family``."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The part of a call of the op on which the choice of a family depends."""

    classes: int  # batch elements
    rows_x: int
    rows_y: int
    columns: int
    precision: str  # "highest", "high" or "medium"
    value: bool
    grad_x: bool
    grad_y: bool

    @property
    def gradients(self) -> int:
        """Number of requested gradients."""
        return self.grad_x + self.grad_y


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kernel family and the problems that it serves best."""

    name: str
    reason: str
    gradients: tuple[int, ...] = (1, 2)
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
            problem.gradients in self.gradients
            and self.min_columns <= problem.columns <= (self.max_columns or problem.columns)
            and self.min_rows <= rows <= (self.max_rows or rows)
            and self.min_classes <= problem.classes <= (self.max_classes or problem.classes)
        )


FAMILIES: tuple[Family, ...] = (
    Family(
        name="value",
        gradients=(0,),
        reason="no gradient: sums of tiles, no matrix in memory",
    ),
    Family(
        name="small",
        max_rows=192,
        min_classes=32,
        reason="enough programs to occupy a GPU: everything in one launch, no pre-pass",
    ),
    Family(
        name="split",
        max_rows=512,
        max_classes=31,
        min_columns=128,
        reason="few tiles: columns are split over programs, three launches, no pre-pass",
    ),
    Family(
        name="stream",
        min_rows=1024,
        max_columns=128,
        reason="many rows of few columns: no matrix of weights to write and read",
    ),
    Family(
        name="tile",
        reason="serves everything: a matrix of weights, then its product with the points",
    ),
)


def choose_family(problem: Problem) -> str:
    """Name the first family that matches ``problem``; the last one matches every gradient."""
    return next(family.name for family in FAMILIES if family.matches(problem))


def choose_input_precision(precision: str, columns: int) -> str:
    """Choose how tiles are multiplied: ``INPUT_PRECISION`` of ``dot``."""
    if columns <= 16 and precision != "medium":
        return "ieee"  # as fast as three passes when there is one step, and exact
    return {"highest": "tf32x3", "high": "bf16x3", "medium": "bf16"}[precision]
