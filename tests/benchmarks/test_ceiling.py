"""The ceiling of a decoder: images are stored as sets store them, and every row is kept."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import ceiling, training
from benchmarks.ceiling import ROWS, keep, store_as_tiles, store_on_basis
from m3d_fast.loaders import open_dataset


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    real = open_dataset("digits")
    ((images, labels),) = real.ordered(sum(real.class_sizes))
    return images[::20].float() / 255, labels[::20]


def test_tiles_are_those_of_the_initialisation(digits: tuple[Tensor, Tensor]):
    images, labels = digits
    small = F.interpolate(images, (8, 8), mode="area")
    expected = F.interpolate(small, (16, 16), mode="bilinear")
    torch.testing.assert_close(store_as_tiles(images, labels, factor=2), expected)


def test_all_components_keep_the_images(digits: tuple[Tensor, Tensor]):
    images, labels = digits
    few, many = (
        store_on_basis(images, labels, side=16, components=count) for count in (5, len(images) - 1)
    )
    # but for coefficients beyond four standard deviations
    torch.testing.assert_close(many, images, atol=0.01, rtol=0)
    assert (few - images).square().mean() > 1e-3


def test_each_class_has_components_of_its_own(digits: tuple[Tensor, Tensor]):
    images, labels = digits
    result = store_on_basis(images, labels, side=16, components=2, each=True)
    own = labels == 3
    expected = store_on_basis(images[own], labels[own], side=16, components=2)
    torch.testing.assert_close(result[own], expected)


def test_rows_are_written_one_by_one_and_not_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(ceiling, "DATASET", "digits")
    monkeypatch.setattr(ceiling, "EPOCHS", 1)
    monkeypatch.setattr(training, "has_compiler", lambda: False)
    assert ROWS["as they are"] is keep
    file = tmp_path / "ceiling.json"
    words = ["ceiling", "as they are", "tiles, factor 2", "--out", str(file)]
    monkeypatch.setattr("sys.argv", words)
    ceiling.main()
    sharp, tiles = json.loads(file.read_text())["rows"].values()
    assert sharp["squared_error"] == 0 < tiles["squared_error"]
    assert sharp["accuracy"] > 0.5
    monkeypatch.setattr(ceiling, "run_row", pytest.fail)
    ceiling.main()
