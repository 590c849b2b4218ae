"""The results of a comparison: a file, a table as text, a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.files import replace_atomically, write_json
from ..evaluation.results import align, format_percent, name_accuracy

FILE, PICTURE = "compare.json", "compare.png"


def save(content: Mapping[str, Any], folder: Path) -> None:
    """Write ``compare.json`` and ``compare.png``, each complete or as it was.

    Raises:
        UserError: if they cannot be written.
    """
    write_json(folder / FILE, content)
    if content["results"]:
        with replace_atomically(folder / PICTURE) as temporary:
            save_bars(content, temporary)


def table(content: Mapping[str, Any]) -> str:
    """The results as text, a row per method and network.

    Images are those of a class as stored and, decoded, as networks train on them; a run's time
    includes the training of the networks that it embeds with.
    """
    rows: list[Sequence[str]] = [
        (
            "method",
            "network",
            name_accuracy(content["protocol"]),
            "networks",
            "stored",
            "decoded",
            "learning rate",
            "steps",
            "construct (s)",
            "memory (MB)",
        )
    ]
    for result in content["results"]:
        rate, memory = result["lr_img"], result["peak_memory_bytes"]
        rows.append(
            (
                result["method"],
                result["network"],
                format_percent(result),
                str(len(result["accuracies"])),
                f"{result['stored_images']:g}",
                f"{result['decoded_images']:g}",
                "" if rate is None else f"{rate:g}",
                "" if result["iterations"] is None else str(result["iterations"]),
                "" if result["seconds"] is None else f"{result['seconds']:.0f}",
                "" if memory is None else f"{memory / 1e6:.0f}",
            )
        )
    return align(rows)


def save_bars(content: Mapping[str, Any], path: Path) -> None:
    """PNG: mean accuracy of every method, a bar per network, with its standard deviation."""
    from matplotlib.figure import Figure  # slow to import

    results = content["results"]
    methods = list(dict.fromkeys(result["method"] for result in results))
    networks = list(dict.fromkeys(result["network"] for result in results))
    width = 0.8 / len(networks)
    figure = Figure(figsize=(2 + 1.1 * len(methods), 4.5), layout="constrained")
    axes = figure.subplots()
    for number, network in enumerate(networks):
        own = [result for result in results if result["network"] == network]
        bars = axes.bar(
            [methods.index(result["method"]) + number * width for result in own],
            [100 * result["mean"] for result in own],
            width,
            yerr=[100 * (result["std"] or 0) for result in own],
            capsize=3,
            label=network,
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    middle = 0.4 - width / 2
    axes.set_xticks([place + middle for place in range(len(methods))], methods)
    axes.tick_params("x", rotation=30 if len(methods) > 6 else 0)
    axes.set_ylabel(name_accuracy(content["protocol"]))
    axes.set_title(f"{content['dataset']}, ipc {content['ipc']}")
    if len(networks) > 1:
        axes.legend()
    figure.savefig(path, format="png", dpi=120)
