"""Seeded class-wise sampling."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..common.errors import DataError
from .protocol import IntArray


def check_class(class_index: int, num_classes: int) -> None:
    """Raise DataError unless the class exists."""
    if not 0 <= class_index < num_classes:
        raise DataError(f"class {class_index} does not exist: classes are 0 to {num_classes - 1}")


class ClassSampler:
    """Class-wise sampling: per class an endless seeded shuffle without replacement.

    Visit ``v`` of class ``c`` follows
    ``numpy.random.default_rng([seed, c, v]).permutation(class_sizes[c])``; a draw may continue
    from one visit into the next. The whole state is one integer per class, the number drawn so
    far, so the sequence of a class depends neither on other classes nor on the sizes of draws.

    Args:
        class_sizes: images per class, each at least 1.
        seed: non-negative.

    Raises:
        DataError: if a class is empty or the seed negative.
    """

    def __init__(self, class_sizes: Sequence[int], seed: int) -> None:
        empty = [index for index, size in enumerate(class_sizes) if size < 1]
        if empty:
            raise DataError(f"every class needs an image to draw from, class {empty[0]} has none")
        if seed < 0:
            raise DataError(f"the seed must be 0 or more, got {seed}")
        self.class_sizes = tuple(int(size) for size in class_sizes)
        self.seed = int(seed)
        self._positions = np.zeros(len(self.class_sizes), dtype=np.int64)
        self._current: dict[int, tuple[int, IntArray]] = {}

    def draw(self, classes: Sequence[int], per_class: int) -> IntArray:
        """Next indices within each class.

        Args:
            classes: class indices; a class given twice is drawn from twice, in turn.
            per_class: images of each, at least 1, possibly more than a class holds.

        Returns:
            int64 ``(len(classes), per_class)``, row ``i`` in ``[0, class_sizes[classes[i]])``.

        Raises:
            DataError: if a class does not exist or ``per_class`` is below 1; nothing is drawn.
        """
        if per_class < 1:
            raise DataError(f"at least one image per class must be drawn, got {per_class}")
        for class_index in classes:
            check_class(class_index, len(self.class_sizes))
        drawn = np.empty((len(classes), per_class), dtype=np.int64)
        for row, class_index in zip(drawn, classes, strict=True):
            self._fill(row, int(class_index))
        return drawn

    def skip(self, classes: Sequence[int], per_class: int) -> None:
        """Advance as ``draw`` does, without computing indices."""
        np.add.at(self._positions, np.asarray(classes, np.int64), per_class)

    def copy(self) -> "ClassSampler":
        """Return another sampler with the same state, to draw ahead without advancing this one."""
        copied = ClassSampler(self.class_sizes, self.seed)
        copied.load_state_dict(self.state_dict())
        return copied

    def state_dict(self) -> dict[str, IntArray]:
        """Return ``{"positions": int64 (num_classes,)}``, the number drawn so far per class."""
        return {"positions": self._positions.copy()}

    def load_state_dict(self, state: Mapping[str, IntArray]) -> None:
        """Continue where ``state_dict`` was taken, given the same class sizes and seed.

        Raises:
            DataError: if the positions are not one non-negative integer per class.
        """
        if "positions" not in state:
            raise DataError(f"a sampler's state has 'positions', got {sorted(state)}")
        positions = np.asarray(state["positions"])
        expected = (len(self.class_sizes),)
        if positions.shape != expected or not np.issubdtype(positions.dtype, np.integer):
            raise DataError(
                f"a sampler's positions are integers of shape {expected}, got "
                f"{positions.dtype} of shape {positions.shape}: the state is of other data"
            )
        if (positions < 0).any():
            raise DataError(f"a sampler's positions are 0 or more, got {positions.min()}")
        self._positions = positions.astype(np.int64)

    def _fill(self, row: IntArray, class_index: int) -> None:
        size = self.class_sizes[class_index]
        position = int(self._positions[class_index])
        filled = 0
        while filled < len(row):
            visit, start = divmod(position + filled, size)
            piece = self._permute(class_index, visit)[start : start + len(row) - filled]
            row[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._positions[class_index] += len(row)

    def _permute(self, class_index: int, visit: int) -> IntArray:
        cached = self._current.get(class_index)
        if cached is None or cached[0] != visit:
            generator = np.random.default_rng([self.seed, class_index, visit])
            cached = visit, generator.permutation(self.class_sizes[class_index])
            self._current[class_index] = cached
        return cached[1]
