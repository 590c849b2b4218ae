"""Rows of the studies of differences have valid settings, and change the code only meanwhile."""

import json
import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.differences import __main__ as command
from benchmarks.differences.m3d import ROWS
from benchmarks.differences.strong import HalfSoftRidge, SoftRidge
from benchmarks.differences.study import STAGES, Difference, Study
from m3d_fast import CondenseConfig
from m3d_fast.engine.pixel_store import PixelState
from m3d_fast.evaluation.protocols import protocol_for
from m3d_fast.methods import TERMS
from m3d_fast.methods.ridge import predict_labels, ridge_losses
from m3d_fast.networks import build_network, initialise
from m3d_fast.synthetic import decode, encode

STUDIES = command.STUDIES


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_row_has_settings_and_a_protocol_that_exist(study: Study):
    protocol = protocol_for("fashionmnist", 28, 4, 10)
    for name, difference in study.rows.items():
        CondenseConfig(**{**study.base, **difference.settings}).resolve()
        replace(protocol, **difference.protocol)
        assert set(difference.stages) <= set(STAGES)
        assert difference.of is None or (difference.of in study.rows and not difference.settings)
        assert name == "base" or difference != Difference()


def compute_with_m3d() -> list[torch.Tensor]:
    images = torch.rand(1, 4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    network = build_network("convnet3", 1, 28, 10)
    initialise(network, torch.Generator().manual_seed(0))
    small = encode(images, 2)
    return [small, decode(small, 2), network(images[0])]


def compute_with_strong() -> list[torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    real, synthetic = (torch.rand(3, count, 5, generator=stream) for count in (8, 2))
    soft = torch.rand(3, 8, 3, generator=stream)
    term = TERMS["ridge"]()
    read = torch.cat([real, soft], 2) if isinstance(term, SoftRidge) else real
    state = PixelState(torch.rand(3, 2, generator=stream), torch.zeros(3, 2))
    state.step_(torch.ones(3, 2), 0.1, 0.5)
    return [term.loss(read, synthetic), state.pixels]


@pytest.mark.parametrize(
    ("study", "compute"), [("m3d", compute_with_m3d), ("strong", compute_with_strong)]
)
def test_code_is_changed_only_while_a_row_runs(study: str, compute):
    usual = compute()
    for name, difference in STUDIES[study].rows.items():
        with difference.code():
            changed = not all(map(torch.equal, compute(), usual))
        assert changed == (difference.code.__name__ != "nullcontext") or name == "mix bilinear"
    assert all(map(torch.equal, compute(), usual))


def test_tiles_are_enlarged_as_the_row_says():
    small = compute_with_m3d()[0]
    with ROWS["tiles bicubic"].code():
        expected = F.interpolate(small[0, :, :, :14, :14], (28, 28), mode="bicubic")
        assert torch.equal(decode(small, 2)[:, 0], expected)


def test_soft_labels_are_regressed_where_a_row_has_them():
    stream = torch.Generator().manual_seed(0)
    real, synthetic = (torch.rand(3, count, 5, generator=stream) for count in (8, 2))
    one_hot = torch.eye(3)[:, None].expand(3, 8, 3)
    read = torch.cat([real, one_hot], 2)
    expected = ridge_losses(real, synthetic)
    for term in (SoftRidge(), HalfSoftRidge()):
        torch.testing.assert_close(term.loss(read, synthetic), expected)
    soft = torch.full((3, 8, 3), 1 / 3)
    predicted = predict_labels(real, synthetic).square().sum(2).mean(1)
    loss = SoftRidge().loss(torch.cat([real, soft], 2), synthetic)
    torch.testing.assert_close(loss, predicted)


def test_rows_are_written_one_by_one_and_not_run_again(tmp_path, monkeypatch):
    base = {"dataset": "digits", "ipc": 1, "iterations": 1, "real_batch": 4, "hold_out": 0.5}
    small = Study(base | {"device": "cpu", "precision": "fp32"}, epochs=1, repeats=1, rows=ROWS)
    monkeypatch.setitem(STUDIES, "m3d", small)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
    rows = ["evaluation: no CutMix", "base"]
    words = ["differences", "m3d", "--folder", str(tmp_path), *rows]
    monkeypatch.setattr("sys.argv", words)
    command.main()
    content = json.loads((tmp_path / "m3d.json").read_text())
    assert list(content["rows"]) == rows
    assert content["rows"][rows[0]]["protocol"] == {"cutmix": 0.0}
    assert all(len(row["accuracies"]) == 1 for row in content["rows"].values())
    assert all(row["seconds"] > row["condensation_seconds"] for row in content["rows"].values())
    # as if it had been interrupted before its set was written
    (tmp_path / "m3d.json").unlink()
    (tmp_path / "m3d/sets/base/synthetic.safetensors").unlink()
    command.main()
    again = json.loads((tmp_path / "m3d.json").read_text())
    for name, row in again["rows"].items():
        assert row["accuracies"] == content["rows"][name]["accuracies"]
    monkeypatch.setattr(command, "run_row", pytest.fail)
    command.main()
