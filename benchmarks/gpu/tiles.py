"""Other tiles for the kernels of a family, checked and timed at the shapes that it serves.

python -m benchmarks.gpu.tiles FAMILY     on a CUDA device; only when named: ``... gpu tiles``

Of every configuration that a shape uses: other warps and stages, and each block half and twice as
large. Each is a record; ``python -m benchmarks.gpu.choose`` names those that are faster.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch

from benchmarks.gpu import records, sweep
from benchmarks.gpu.fit import find_server
from benchmarks.gpu.shapes import SHAPES, Shape
from m3d_fast.kernels.triton import small, split, stream, tile, value
from m3d_fast.kernels.triton.configs import Config
from m3d_fast.kernels.triton.families import FAMILIES, choose_input_precision

MODULES = {"small": small, "split": split, "stream": stream, "tile": tile, "value": value}
WARPS, STAGES = (4, 8), (1, 2, 3, 4)
LEAST_BLOCK = 16  # rows and columns that a tensor core takes
FEW = 2  # shapes per family: its most valuable
# kernels that run for the value alone
OF_VALUES = ("mmd2_small_within_kernel", "mmd2_value_sums_kernel")


class Variant(NamedTuple):
    """A configuration to try at a shape in the place of today's."""

    shape: Shape
    precision: str
    config: Config
    today: bool

    @property
    def name(self) -> str:
        """Names the record."""
        blocks = "x".join(map(str, self.config.blocks.values()))
        return (
            f"{self.config.name}, {self.precision}, {blocks}, {self.config.warps} warps,"
            f" {self.config.stages} stages, {self.shape.name}"
        )


def find_shapes(family: str) -> list[Shape]:
    """The first shapes that the table gives to a family."""
    served = []
    for shape in SHAPES:
        classes, n, m, d = shape.sizes
        if find_server(FAMILIES, (classes, n + m, d), shape.gradients) == family:
            served.append(shape)
    return served[:FEW]


def vary(config: Config) -> Iterator[Config]:
    """Other warps and stages, then other blocks."""
    for warps, stages in itertools.product(WARPS, STAGES):
        if (warps, stages) != (config.warps, config.stages):
            yield replace(config, warps=warps, stages=stages)
    for name, size in config.blocks.items():
        for other in (size // 2, size * 2):
            if other >= LEAST_BLOCK:
                yield replace(config, blocks={**config.blocks, name: other})


def list_variants(family: str) -> Iterator[Variant]:
    """All that is tried, each once, of products at the precisions that the sweep times."""
    listed = set()
    for shape, precision in itertools.product(find_shapes(family), sweep.TIMED):
        input_precision = choose_input_precision(precision, shape.sizes[3])
        rows = [
            config
            for config in MODULES[family].CONFIGS
            if 90 in config.architectures and config.input_precision == input_precision
        ]
        todays = [Variant(shape, precision, row, True) for row in rows]
        others = (Variant(shape, precision, new, False) for row in rows for new in vary(row))
        for variant in itertools.chain(todays, others):
            if variant.name not in listed:
                listed.add(variant.name)
                yield variant


def replace_config(module: ModuleType, config: Config) -> Any:
    """A patch: this configuration is the only one for its kernel and precision."""
    kind = config.kernel, config.input_precision
    others = [row for row in module.CONFIGS if (row.kernel, row.input_precision) != kind]
    return mock.patch.object(module, "CONFIGS", (config, *others))


def measure_variant(family: str, variant: Variant, device: str = "cuda") -> dict[str, Any]:
    """The record of one variant."""
    config = variant.config
    of_value = config.name in OF_VALUES
    with replace_config(MODULES[family], config):
        point = sweep.measure_point(family, variant.shape, variant.precision, of_value, device)
    return point | {
        "kind": "tiles",
        "name": variant.name,
        "kernel": config.name,
        "blocks": dict(config.blocks),
        "warps": config.warps,
        "stages": config.stages,
        "today": variant.today,
    }


def launch_variants(device: str) -> Iterator[str]:
    """Launch all variants once; yields after each."""
    for family in MODULES:
        for variant in list_variants(family):
            shape, precision = variant.shape, variant.precision
            try:
                with replace_config(MODULES[family], variant.config), sweep.force_family(family):
                    samples = sweep.draw_samples(shape, device)
                    of_value = variant.config.name in OF_VALUES
                    sweep.call_op(shape, *samples, precision, of_value)
            except sweep.HandedOver:
                continue
            yield variant.name


def main(arguments: list[str]) -> int:
    """Measure a family's variants."""
    (family,) = arguments
    begun = records.find_begun()
    for variant in list_variants(family):
        if variant.name not in begun:
            records.append({"kind": "start", "name": variant.name})
            record = measure_variant(family, variant)
            records.append(record)
            if "error" in record:
                torch.cuda.synchronize()  # raises if the device is lost: the process must end
            torch.cuda.empty_cache()
    return 0


def find_faster(lines: list[dict[str, Any]], least: float = 1.05) -> list[str]:
    """Lines that name the fastest tiles of a kernel, where they beat today's by ``least``."""
    times: dict[tuple[str, str, str], dict[str, float]] = {}
    for line in lines:
        if "median_seconds" in line:
            tiles = f"blocks {line['blocks']}, {line['warps']} warps, {line['stages']} stages"
            where = line["kernel"], line["precision"], line["shape"]
            group = times.setdefault(where, {})
            group[tiles] = line["median_seconds"]
            if line["today"]:
                group["today"] = line["median_seconds"]
    found = []
    for (kernel, precision, shape), group in sorted(times.items()):
        best = min(sorted(group), key=lambda tiles: group[tiles])
        if "today" in group and group["today"] > least * group[best]:
            gain = group["today"] / group[best]
            found.append(f"{kernel}, {precision}, {shape}: {best}: {gain:.2f}x as fast as today")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
