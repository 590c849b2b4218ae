"""Fit the limits of a table of kernel families to measured times.

A table is searched from the top, and each row serves a box of classes, rows and columns. Rows are
added to the last one, which serves everything, as long as one is worth it, the best first; then
each box is chosen again until none can be improved. All boxes that the measured shapes can tell
apart are tried.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from m3d_fast.kernels.triton.families import Family, Problem

Shape = tuple[int, int, int]  # classes, rows of both samples, columns
Costs = dict[Shape, dict[str, dict[str, float]]]  # seconds by shape, case and family
Table = tuple[Family, ...]
Key = tuple[Shape, int]  # a shape, and the number of gradients
Losses = dict[Key, dict[str, float]]  # logarithm of the slowdown, summed over cases, by family
AXES = ("classes", "rows", "columns")
WIDEST = {"min": 1, "max": None}
WORTHWHILE = 0.02  # of the time: less is noise, and changes nothing
FORBIDDEN = math.log(100.0)  # of a family without a time: it failed there


class Fitted(NamedTuple):
    """A table, and the mean slowdown against the fastest family, before and after."""

    table: Table
    before: float
    after: float


def find_server(table: Table, shape: Shape, gradients: int) -> str:
    """The family that a table chooses, as ``choose_family`` does."""
    classes, rows, columns = shape
    problem = Problem(
        classes=classes,
        rows_x=rows - 1,
        rows_y=1,
        columns=columns,
        precision="highest",
        value=True,
        grad_x=gradients == 2,
        grad_y=gradients > 0,
    )
    return next(family.name for family in table if family.matches(problem))


def compute_losses(costs: Costs, last: str) -> Losses:
    """Logarithms of the slowdown against the fastest family.

    A family without a time leaves the shape to the last one, or failed there.
    """
    losses: Losses = {}
    names = {name for cases in costs.values() for times in cases.values() for name in times}
    for shape, cases in sorted(costs.items()):
        for case, times in sorted(cases.items()):
            gradients = int(case.rsplit(", ", 1)[1])
            total = losses.setdefault((shape, gradients), dict.fromkeys(sorted(names), 0.0))
            best = min(times.values())
            for name in total:
                seconds = times.get(name, times.get(last))
                total[name] += FORBIDDEN if seconds is None else math.log(seconds / best)
    return losses


def find_limits(values: Iterable[int]) -> list[int]:
    """Numbers that tell neighbours apart: a power of two near their geometric mean if there is."""
    limits = []
    for low, high in itertools.pairwise(sorted(set(values))):
        middle = math.sqrt(low * high)
        power = 2 ** round(math.log2(middle))
        limits.append(power if low < power <= high else math.ceil(middle))
    return limits


def _list_sides(limits: list[int], least: int, most: int | None) -> list[tuple[int, int | None]]:
    """(minimum, maximum) of one axis: the present ones first, then the widest."""
    low, high = sorted({1, *limits}), [None, *(limit - 1 for limit in reversed(limits))]
    sides = [(a, b) for b in high for a in low if b is None or a <= b]
    return list(dict.fromkeys([(least, most), *sides]))


def _find_keys(family: Family, keys: list[Key]) -> int:
    """The keys that a family's box holds, as bits."""
    held = 0
    for bit, (shape, gradients) in enumerate(keys):
        inside = gradients in family.gradients
        for axis, value in zip(AXES, shape, strict=True):
            most = getattr(family, f"max_{axis}")
            inside &= getattr(family, f"min_{axis}") <= value <= (most or value)
        held |= inside << bit
    return held


def list_boxes(family: Family, keys: list[Key]) -> dict[int, Family]:
    """The family with every box that the keys can tell apart, by the keys it holds.

    Of boxes that hold the same keys, the present one, else the one with the fewest limits.
    """
    sides = []
    for axis, values in zip(AXES, zip(*(shape for shape, _ in keys), strict=True), strict=True):
        present = getattr(family, f"min_{axis}"), getattr(family, f"max_{axis}")
        wide = replace(family, **{f"{side}_{a}": v for a in AXES for side, v in WIDEST.items()})
        by_keys: dict[int, tuple[int, int | None]] = {}
        for least, most in _list_sides(find_limits(values), *present):
            box = replace(wide, **{f"min_{axis}": least, f"max_{axis}": most})
            by_keys.setdefault(_find_keys(box, keys), (least, most))
        sides.append(by_keys)
    boxes = {_find_keys(family, keys): family}
    fewest: dict[int, int] = {}
    for chosen in itertools.product(*(side.items() for side in sides)):
        held = chosen[0][0] & chosen[1][0] & chosen[2][0]
        limits = {f"min_{axis}": low for axis, (_, (low, _)) in zip(AXES, chosen, strict=True)}
        limits |= {f"max_{axis}": high for axis, (_, (_, high)) in zip(AXES, chosen, strict=True)}
        count = sum(limit not in (1, None) for limit in limits.values())
        if held not in boxes or count < fewest.get(held, 0):
            boxes[held], fewest[held] = replace(family, **limits), count
    return boxes


class _Fitter:
    """Chooses among the boxes of the rows of a table; a row that is absent holds no key."""

    def __init__(self, table: Table, losses: Losses) -> None:
        self.table, self.keys, self.losses = table, list(losses), list(losses.values())
        timed = {name for by_family in self.losses for name in by_family}
        self.fitted = [
            at for at, row in enumerate(table[:-1]) if any(row.gradients) and row.name in timed
        ]
        self.boxes = {at: list_boxes(table[at], self.keys) for at in self.fitted}
        # of a family without any time nothing is known: its row stays, and counts as absent
        self.held = [_find_keys(row, self.keys) if row.name in timed else 0 for row in table]

    def compute_loss(self, held: list[int]) -> float:
        """Of the families that a table chooses whose rows hold these keys."""
        total = 0.0
        for bit, by_family in enumerate(self.losses):
            at = next(at for at, keys in enumerate(held) if keys >> bit & 1)
            total += by_family.get(self.table[at].name, FORBIDDEN)
        return total

    def fit(self, worthwhile: float) -> list[int]:
        """The keys of each row, with as few rows as worthwhile."""
        held = list(self.held)
        for at in self.fitted:
            held[at] = 0
        while True:
            absent = [at for at in self.fitted if not held[at]]
            best = min((self._fit_row(held, at) for at in absent), default=(math.inf, held))
            if self.compute_loss(held) - best[0] < worthwhile:
                return self._improve(held)
            held = best[1]

    def _fit_row(self, held: list[int], at: int) -> tuple[float, list[int]]:
        """The least loss by changing one row, and the keys then."""
        tried = ([*held[:at], keys, *held[at + 1 :]] for keys in sorted(self.boxes[at]) if keys)
        return min((round(self.compute_loss(other), 9), other) for other in tried)

    def _improve(self, held: list[int]) -> list[int]:
        """Change one row at a time as long as that helps."""
        while True:
            present = [at for at in self.fitted if held[at]]
            rows = (self._fit_row(held, at) for at in present)
            loss, better = min(rows, default=(math.inf, held))
            if loss >= self.compute_loss(held) - 1e-6:
                return held
            held = better

    def make_table(self, held: list[int]) -> Table:
        """The rows that hold keys, and those that were not fitted."""
        return tuple(
            self.boxes[at][held[at]] if at in self.fitted else row
            for at, row in enumerate(self.table)
            if at not in self.fitted or held[at]
        )


def fit_table(table: Table, costs: Costs) -> Fitted:
    """Fit all rows that serve gradients, but for the last, which serves what is left.

    A table that is worse by less than ``WORTHWHILE`` stays, unless fewer rows do as well.
    """
    fitter = _Fitter(table, compute_losses(costs, table[-1].name))
    cases = sum(len(of_shape) for of_shape in costs.values())
    held = fitter.fit(WORTHWHILE * cases)
    before, after = fitter.compute_loss(fitter.held), fitter.compute_loss(held)
    if all(held[at] for at in fitter.fitted) and before - after < WORTHWHILE * cases:
        held, after = fitter.held, before
    fitted = table if held == fitter.held else fitter.make_table(held)
    return Fitted(fitted, math.exp(before / cases), math.exp(after / cases))
