"""Pictures of a comparison: bars of distances, and a t-SNE of real and condensed images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.files import replace_atomically
from .comparison import Comparison, FeaturesOfRun
from .statistics import MEASURES

PERPLEXITY = 30.0  # scikit-learn's default; a third of the points, if they are fewer than 90
PANEL = 4.5  # inches


def save_bars(comparisons: Sequence[Comparison], path: Path) -> None:
    """PNG with a panel per measure and a bar, with its spread, per run and set.

    Raises:
        UserError: if the file cannot be written.
    """
    from matplotlib import pyplot  # slow to import

    figure, panels = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    rows = [
        (f"{result.run.path.name} {name}", values)
        for result in comparisons
        for name, values in result.distances.items()
    ]
    for column, (axes, measure) in enumerate(zip(panels.flat, MEASURES, strict=True)):
        for position, (_, values) in enumerate(rows):
            of_networks = values[:, column]
            spread = of_networks.std().item() if len(of_networks) > 1 else 0.0
            colour = f"C{position // 2}"  # one of a run, paler for its initial images
            alpha = 0.4 if position % 2 else 1.0
            axes.barh(position, of_networks.mean().item(), xerr=spread, color=colour, alpha=alpha)
        axes.set_title(measure)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows] if column % 3 == 0 else [])
        axes.invert_yaxis()
    figure.suptitle("distance to the real images, mean and deviation over random networks")
    _save(figure, path)


def save_tsne(comparisons: Sequence[Comparison], path: Path, seed: int) -> None:
    """PNG with a t-SNE per run: dots are real images, stars condensed ones, colours classes.

    Raises:
        UserError: if the file cannot be written.
    """
    from matplotlib import pyplot  # slow to import

    size = (PANEL * len(comparisons), PANEL)
    figure, panels = pyplot.subplots(
        1, len(comparisons), figsize=size, layout="constrained", squeeze=False
    )
    for axes, result in zip(panels.flat, comparisons, strict=True):
        assert result.features is not None
        real, synthetic = _embed_in_plane(result.features, seed)
        colours = {"cmap": "tab10", "vmin": 0, "vmax": 9}
        axes.scatter(*real.T, c=result.features.real_labels, s=6, alpha=0.4, **colours)
        axes.scatter(
            *synthetic.T,
            c=result.features.synthetic_labels,
            s=90,
            marker="*",
            edgecolors="black",
            linewidths=0.6,
            **colours,
        )
        axes.set_title(result.run.path.name)
        axes.set_xticks([])
        axes.set_yticks([])
    _save(figure, path)


def _embed_in_plane(features: FeaturesOfRun, seed: int) -> tuple[Any, Any]:
    from sklearn.manifold import TSNE  # slow to import

    points = torch.cat([features.real, features.synthetic]).numpy()
    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    placed = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)
    return placed[: len(features.real)], placed[len(features.real) :]


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    try:
        with replace_atomically(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    finally:
        pyplot.close(figure)
