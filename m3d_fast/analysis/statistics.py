"""Moments of features and style of feature maps, averaged over images, and their distances."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..methods.protocol import Network, Reading
from ..methods.style import average_grams

MOMENTS = (1, 2, 3)
# columns of the table, and keys of the JSON file
MEASURES = ("moment1", "moment2", "moment3", "style_mean", "style_std", "gram")
# maps are read after a ReLU: after an instance norm mean and variance of every map are constants


def read_statistics(network: Network, images: Tensor, labels: Tensor) -> Reading:
    """Features; averages of their powers, of every channel of every block's map, and the Grams."""
    maps = network.maps(images, "relu")
    features = network.embed(images)
    moments = [(features**power).mean(1) for power in MOMENTS]
    means = [layer.mean((1, 3, 4), dtype=torch.float32) for layer in maps]
    grams = [average_grams(layer, exact=True) for layer in maps]
    return Reading((features,), (*moments, *means, *grams))


@dataclass
class Average:
    """Averages over the images of a class, which come in batches; float64."""

    count: int = 0
    totals: list[Tensor] = field(default_factory=list)

    def add(self, means: Iterable[Tensor], count: int) -> None:
        """Add the averages ``(1, ...)`` of :func:`read_statistics` over ``count`` images."""
        weighted = [mean[0].double() * count for mean in means]
        if self.count:
            weighted = [a + b for a, b in zip(self.totals, weighted, strict=True)]
        self.totals = weighted
        self.count += count

    def distances(self, other: "Average") -> Tensor:
        """Distances ``(len(MEASURES),)`` to the averages over other images.

        Euclidean; those of style (mean and standard deviation of every channel over all pixels of
        all images; Gram ``F F' / (C h w)``) are averaged over blocks.
        """
        ours, theirs = self._statistics(), other._statistics()
        distances = []
        for mine, yours in zip(ours, theirs, strict=True):
            parts = [(a - b).norm() for a, b in zip(mine, yours, strict=True)]
            distances.append(torch.stack(parts).mean())
        return torch.stack(distances)

    def _statistics(self) -> list[list[Tensor]]:
        """Per measure a tensor, or one per block."""
        averages = [total / self.count for total in self.totals]
        moments, rest = averages[: len(MOMENTS)], averages[len(MOMENTS) :]
        means, grams = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        deviations = [
            (len(gram) * gram.diagonal() - mean.square()).clamp_min(0).sqrt()
            for mean, gram in zip(means, grams, strict=True)
        ]
        return [*([moment] for moment in moments), means, deviations, grams]
