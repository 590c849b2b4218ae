"""Other tiles are tried one at a time, checked, and compared with today's."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import records, sweep, tiles
from benchmarks.gpu.shapes import Shape
from m3d_fast.kernels.triton.configs import Config
from m3d_fast.kernels.triton.families import FAMILIES

TINY = Shape(name="tiny", sizes=(2, 5, 3, 20), flop=1e6, value_flop=1e6, megabytes=3.0)
TIMED = [row.name for row in FAMILIES if row.name in tiles.MODULES]


def test_every_family_is_tried_where_the_table_chooses_it():
    assert set(TIMED) == set(tiles.MODULES) == {row.name for row in FAMILIES}
    for family in TIMED:
        shapes = tiles.find_shapes(family)
        assert 1 <= len(shapes) <= tiles.FEW
        variants = list(tiles.list_variants(family))
        names = [variant.name for variant in variants]
        assert len(set(names)) == len(names)
        assert sum(variant.today for variant in variants) >= len(shapes)


def test_variants_differ_from_today_in_one_way():
    today = Config(kernel=None, blocks={"BLOCK_M": 64, "BLOCK_D": 16}, warps=4, stages=2)
    others = list(tiles.vary(today))
    assert len(others) == len({(str(v.blocks), v.warps, v.stages) for v in others}) == 7 + 3
    for variant in others:
        assert variant != today
        assert (variant.blocks == today.blocks) or (variant.warps, variant.stages) == (4, 2)
        assert min(variant.blocks.values()) >= tiles.LEAST_BLOCK


@pytest.mark.parametrize("family", TIMED)
def test_the_variant_is_what_runs(family, monkeypatch):
    """And the only one for its kernel and precision."""
    seen = []
    variants = list(tiles.list_variants(family))
    variant = next(v for v in reversed(variants) if not v.today)
    module = tiles.MODULES[family]
    before = module.CONFIGS

    def measure(name, shape, precision, value, device):
        seen.extend(row for row in module.CONFIGS if row.kernel is variant.config.kernel
                    and row.input_precision == variant.config.input_precision)  # fmt: skip
        return {"kind": "point", "family": name, "median_seconds": 1.0}

    monkeypatch.setattr(sweep, "measure_point", measure)
    record = tiles.measure_variant(family, variant, "cpu")
    assert seen == [variant.config]
    assert module.CONFIGS is before
    assert (record["kind"], record["family"], record["today"]) == ("tiles", family, False)
    assert record["blocks"] == dict(variant.config.blocks)


def test_a_variant_is_checked_against_float64(monkeypatch):
    monkeypatch.setattr(
        sweep, "draw_samples", lambda shape, device, rows=None: torch.randn(2, 2, 4, 20).unbind()
    )
    monkeypatch.setattr(sweep, "time_in_graph", lambda calls: [1e-6])
    config = next(
        row for row in tiles.tile.CONFIGS
        if row.input_precision == "tf32x3" and "BLOCK_K" in row.blocks
    )  # fmt: skip
    config = replace(config, blocks={**config.blocks, "BLOCK_K": 16})
    variant = tiles.Variant(TINY, "highest", config, False)
    record = tiles.measure_variant("tile", variant, "cpu")
    assert "error" not in record, record["error"]
    assert record["errors"]["grad_y"] < 2e-6
    assert not records.is_failure(record)
