"""The comparison of two-sample tests runs, and its kernels are those of the published rules."""

import functools
import json

import pytest
import torch
from torch import Tensor

from benchmarks import power


def test_every_test_runs_on_every_kind_of_data(tmp_path, monkeypatch, capsys):
    small = {name: functools.partial(draw, rows=40) for name, draw in power.DATA.items()}
    monkeypatch.setattr(power, "DATA", small)
    power.main(["--out", str(tmp_path / "power.json"), "--pairs", "1", "--permutations", "19"])
    content = json.loads((tmp_path / "power.json").read_text())
    expected = {(data, test) for data in small for test in power.list_own_tests(19)}
    assert {(one["data"], one["test"]) for one in content["results"]} >= expected
    assert (content["pairs"], content["permutations"]) == (1, 19)
    printed = capsys.readouterr().out
    assert all(f"\n| {test} | " in printed for _, test in expected)


def test_shares_are_of_the_same_pairs():
    seen: dict[str, list[float]] = {"half": [], "never": []}

    def half(x: Tensor, y: Tensor, seed: int) -> bool:
        seen["half"].append(x.sum().item())
        return seed % 2 == 0

    def never(x: Tensor, y: Tensor, seed: int) -> bool:
        seen["never"].append(x.sum().item())
        return False

    results = power.measure({"half": half, "never": never}, pairs=4)
    assert [one.rejections for one in results] == [0.5, 0.0] * len(power.DATA)
    assert [one.standard_error for one in results[:2]] == [0.25, 0.0]
    assert seen["half"] == seen["never"]
    assert len(set(seen["half"])) == 4 * len(power.DATA)


def test_kernels_have_the_published_bandwidths():
    """Between the samples the distances are 5 and 4, in the city block 7 and 4; within them 3."""
    x, y = torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    kernels = power.list_published_kernels(x, y, "mmdagg")
    assert [one.norm for one in kernels[:10]] == ["l1"] * 10
    widths = [kernels[0].bandwidth, kernels[9].bandwidth]
    assert widths == pytest.approx([4 / 2, 7 * 2])
    assert [kernels[10].bandwidth, kernels[19].bandwidth] == pytest.approx([2**2, 10**2])
    ends = torch.quantile(torch.tensor([3.0, 7.0, 4.0]), torch.tensor([0.05, 0.95]))
    first = power.list_published_kernels(x, y, "mmdfuse")[0]
    assert first.bandwidth * 2**0.5 == pytest.approx(ends[0].item() / 2)


def test_counts_are_positive(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        power.main(["--out", str(tmp_path / "power.json"), "--pairs", "0"])
    assert "--pairs: expected at least 1, got 0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
