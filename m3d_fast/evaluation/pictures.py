"""Pictures of accuracies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def save_lines(
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    path: Path,
    *,
    across: str,
    title: str,
) -> None:
    """PNG of lines of mean accuracy, with bands of one standard deviation.

    Args:
        lines: by label, places on the x axis and ``mean`` and ``std`` there, fractions of 1.
        path: of the file.
        across: what the x axis shows.
        title: of the picture.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for label, points in lines.items():
        places = [place for place, _ in points]
        means = [100 * each["mean"] for _, each in points]
        spreads = [100 * (each["std"] or 0) for _, each in points]
        (line,) = axes.plot(places, means, marker="o", label=label)
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel(across)
    axes.set_ylabel("accuracy (%)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
