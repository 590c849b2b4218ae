import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from m3d_fast.loaders import DATASETS, DataError, MemoryImages, open_dataset, resources

Write = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashionmnits", "dataset: 'fashionmnits' is not known; did you mean fashionmnist?"),
        ("CIFAR10", "dataset: 'CIFAR10' is not known; did you mean cifar10 or cifar100?"),
        ("zzz", "dataset: 'zzz' is not known; known: digits, fashionmnist, mnist,"),
        ("custom:no.txt", "the list of classes no.txt cannot be read"),
    ],
)
def test_names_that_cannot_be_opened(name: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset(name)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split: 'val' is not known; known: train, held-out, test"):
        open_dataset("digits", split="val")
    with pytest.raises(DataError, match="the size must be at least 8 pixels, got 7"):
        open_dataset("digits", size=7)
    with pytest.raises(DataError, match="the seed must be 0 or more, got -3"):
        open_dataset("digits", seed=-3)
    file = tmp_path / "set.beton"
    file.touch()
    with pytest.raises(DataError, match=f"the data root of mnist must be a folder, {file} is a"):
        open_dataset("mnist", file)
    message = "cache: 'gpu' is not known; known: auto, device, host, none"
    with pytest.raises(DataError, match=message):
        open_dataset("digits", cache="gpu")
    with pytest.raises(DataError, match="loader: 'dali' is not known; known: auto, ffcv, folder"):
        open_dataset("digits", loader="dali")
    for flag in ({"loader": "ffcv"}, {"loader": "folder"}, {"cache": "none"}, {"cache": "host"}):
        with pytest.raises(DataError, match="digits is small and held on the device: leave out"):
            open_dataset("digits", **flag)


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DataError, match="cannot be put on cuda: no CUDA device here, take cpu"):
        open_dataset("digits", device="cuda")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(DataError, match=r"needs the Python package sklearn.*m3d_fast\[condense\]"):
        open_dataset("digits")


def test_a_folder_that_may_not_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/secret")

    monkeypatch.setattr("m3d_fast.loaders.backends.image_tree", forbidden)
    with pytest.raises(DataError, match=r"folder cannot be read: .*Permission denied: '/secret'"):
        open_dataset("folder", "/secret", size=8)


def test_what_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_bytes", lambda _: 1438 * 32 * 32)
    assert open_dataset("digits", size=32).image_shape == (1, 32, 32)
    with pytest.raises(DataError, match=r"digits \(1438 images of 33 px\) needs 0\.00 GB on cpu"):
        open_dataset("digits", size=33)


def test_free_memory_is_a_plausible_number() -> None:
    assert 10**6 < resources.free_bytes(torch.device("cpu")) < 10**15


def test_the_log_says_where_the_data_come_from(
    tmp_path: Path, write_mnist: Write, caplog: pytest.LogCaptureFixture
) -> None:
    write_mnist(tmp_path, per_class=2)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        open_dataset("fashionmnist", tmp_path)
    assert caplog.messages == [f"fashionmnist: 20 train images from {tmp_path}, resident on cpu"]


@pytest.mark.parametrize("size", [8, 20, 40])
def test_another_size_is_antialiased_bilinear(
    size: int, tmp_path: Path, write_mnist: Write
) -> None:
    # more images than are resized at once
    images, labels = write_mnist(tmp_path, per_class=110)
    opened = open_dataset("mnist", tmp_path, size=size)
    source = torch.from_numpy(images[labels == 4])[:, None].double()
    exact = interpolate(source, (size, size), mode="bilinear", antialias=True)
    resized = opened.take(4, range(110)).double()
    # half a level of rounding for each of the two directions, and the fixed-point weights' error
    assert (resized - exact).abs().max() <= 0.5 + 0.5 + 0.05
    assert (resized - exact).abs().mean() <= 0.35


def test_the_seed_decides_the_order() -> None:
    first = open_dataset("digits", seed=1).batch([0, 1], 20)
    assert torch.equal(open_dataset("digits", seed=1).batch([0, 1], 20), first)
    assert not torch.equal(open_dataset("digits", seed=2).batch([0, 1], 20), first)


def test_the_registry_describes_what_opens(tmp_path: Path, write_mnist: Write) -> None:
    write_mnist(tmp_path)
    for name in ("digits", "mnist", "fashionmnist"):
        opened = open_dataset(name, tmp_path)
        info = DATASETS[name]
        assert isinstance(opened, MemoryImages)
        assert opened.num_classes == info.num_classes
        assert opened.image_shape == (info.channels, info.default_size, info.default_size)
        assert (opened.mean, opened.std) == (info.mean, info.std)


def test_flips_only_where_mirrored_images_keep_their_class() -> None:
    without = {name for name, info in DATASETS.items() if not info.flips}
    assert without == {"digits", "mnist", "svhn"}


def test_importing_is_light_and_so_is_reading() -> None:
    script = (
        "import sys, m3d_fast.loaders\n"
        "heavy = {'torchvision', 'sklearn', 'scipy', 'PIL', 'triton', 'torch._dynamo'}\n"
        "assert not heavy & set(sys.modules)\n"
        "m3d_fast.loaders.open_dataset('digits', size=16)\n"
        "assert not heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
