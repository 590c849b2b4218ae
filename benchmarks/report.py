"""Benchmark results as a Markdown table and a plot.

python -m benchmarks.report benchmarks/results/cpu/mmd.json ...      the table, on stdout
python -m benchmarks.report --plot FILE.png [--sizes 500,1000,...]   time and memory over N
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.baselines import peers
from benchmarks.memory import peak_bytes
from m3d_fast.kernels import mmd2_and_grad

HEADER = "| case | who | time | ours is faster by | peak MB |\n|---|---|---:|---:|---:|"


def format_seconds(seconds: float) -> str:
    """A duration with three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def format_rows(benchmark: dict[str, Any]) -> Iterator[str]:
    """Table rows of one benchmark, one per function, ours first."""
    info = benchmark["extra_info"]
    if "median_seconds" not in info:  # a benchmark without peers
        values = ", ".join(f"{name} {value:.4g}" for name, value in info.items())
        yield f"| {benchmark['name']} | {values} | | | |"
        return
    medians = info["median_seconds"]
    ours = next(iter(medians))
    for name, seconds in medians.items():
        ratio = "" if name == ours else f"{seconds / medians[ours]:.3g}x"
        peak = info.get("peak_mb", {}).get(name)
        memory = "" if peak is None else f"{peak:.3g}"
        case = info.get("case", benchmark["name"]) if name == ours else ""
        yield f"| {case} | {name} | {format_seconds(seconds)} | {ratio} | {memory} |"


def format_table(paths: list[Path]) -> str:
    """All benchmarks of all files; below, the machine, torch version and commit of each file."""
    lines, sources = [HEADER], []
    for path in paths:
        content = json.loads(path.read_text())
        for benchmark in content["benchmarks"]:
            lines.extend(format_rows(benchmark))
        sources.append(f"`{path.name}`: {_describe_source(content)}")
    return "\n".join([*lines, "", "Medians. " + "; ".join(sources) + "."])


def _describe_source(content: dict[str, Any]) -> str:
    machine = content.get("machine_info", {})
    name = machine.get("gpu") or machine.get("cpu", {}).get("brand_raw", "unknown processor")
    info = content["benchmarks"][0]["extra_info"]
    commit = content.get("commit_info", {}).get("id", "unknown")[:10]
    where = f"{name}, torch {info.get('torch', 'unknown')}"
    if "threads" in info and not machine.get("gpu"):
        where += f", {info['threads']} thread{'s' if info['threads'] > 1 else ''}"
    return f"{where}, commit {commit}"


def measure_sizes(
    sizes: list[int], columns: int = 64, rounds: int = 3
) -> dict[str, list[list[float]]]:
    """[N, seconds, peak MB] by method: value and gradient of two samples of N rows."""
    methods: dict[str, Callable[..., object]] = {
        "m3d_fast": mmd2_and_grad,
        "closed form in plain torch": peers.closed_form,
        "stacked cdist and autograd": peers.differentiate(peers.batched_losses),
    }
    points: dict[str, list[list[float]]] = {name: [] for name in methods}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for size in sizes:
        x, y = torch.randn(2, 1, size, columns, device=device)
        for name, method in methods.items():
            peak = peak_bytes(lambda method=method, x=x, y=y: method(x, y), device) / 2**20
            points[name].append([size, _time(lambda: method(x, y), rounds), peak])  # noqa: B023
    return points


def _time(function: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plot(points: dict[str, list[list[float]]], path: Path) -> None:
    """Write a picture of time and memory over N."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name, rows in points.items():
        sizes, seconds, peaks = zip(*rows, strict=True)
        left.loglog(sizes, [1e3 * value for value in seconds], marker="o", label=name)
        right.loglog(sizes, peaks, marker="o", label=name)
    for axes, label in ((left, "ms"), (right, "peak MB beyond inputs")):
        axes.set(xlabel="rows per sample (64 features)", ylabel=label)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set_title("value and gradient")
    left.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print the table, draw the plot, or both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of pytest-benchmark")
    parser.add_argument("--plot", type=Path, help="measure over N and write this picture")
    parser.add_argument(
        "--sizes", default="250,500,1000,2000,4000", help="values of N, separated by commas"
    )
    options = parser.parse_args()
    if not options.results and not options.plot:
        parser.error("expected result files or --plot")
    if options.results:
        print(format_table(options.results))
    if options.plot:
        plot(measure_sizes([int(size) for size in options.sizes.split(",")]), options.plot)


if __name__ == "__main__":
    main()
