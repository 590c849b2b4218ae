"""Pictures of accuracies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Lines = Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]]


def save_lines(lines: Lines, path: Path, *, across: str, title: str) -> None:
    """PNG of lines of mean accuracy, with bands of one standard deviation.

    Args:
        lines: by label, places on the x axis and ``mean`` and ``std`` there, fractions of 1.
        path: of the file.
        across: what the x axis shows.
        title: of the picture.
    """
    save_panels({across: lines}, path, title=title)


def save_panels(panels: Mapping[str, Lines], path: Path, *, title: str) -> None:
    """PNG of panels side by side, each of lines as in :func:`save_lines`, by what they are across.

    Args:
        panels: lines by the label of their x axis.
        path: of the file.
        title: of the picture.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6.5 * len(panels), 4.5), layout="constrained")
    figure.suptitle(title)
    (row,) = figure.subplots(1, len(panels), squeeze=False)
    for axes, (across, lines) in zip(row, panels.items(), strict=True):
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
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=120)
