"""No test reaches the network or the machine's own data; tiny files of every layout."""

import gzip
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.betons import write_betons

PREFIX = {"train": "train", "test": "t10k"}


@pytest.fixture(autouse=True)
def tried_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Requested addresses; only file: ones are answered. The cache is an empty folder."""
    tried: list[str] = []
    real_urlopen = urllib.request.urlopen

    def urlopen(url: str, timeout: float) -> object:
        tried.append(url)
        if url.startswith("file:"):
            return real_urlopen(url, timeout=timeout)
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr("m3d_fast.loaders.download.CACHE", tmp_path / "cache")
    debian = {"fashionmnist": tmp_path / "debian"}
    monkeypatch.setattr("m3d_fast.loaders.readers.mnist.DEBIAN_FOLDERS", debian)
    return tried


@pytest.fixture
def idx_bytes() -> Callable[[np.ndarray], bytes]:
    def encode(values: np.ndarray) -> bytes:
        header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        return header + values.astype(np.uint8).tobytes()

    return encode


@pytest.fixture
def write_mnist(
    idx_bytes: Callable[[np.ndarray], bytes],
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Write the two files of one split; returns the images and labels in them."""

    def write(
        folder: Path,
        split: str = "train",
        *,
        per_class: int = 3,
        compress: bool = True,
        labels: np.ndarray | None = None,
        side: int = 28,
    ) -> tuple[np.ndarray, np.ndarray]:
        generator = np.random.default_rng(len(split))
        if labels is None:
            labels = generator.permutation(np.repeat(np.arange(10), per_class))
        images = generator.integers(0, 256, (len(labels), side, side), dtype=np.uint8)
        folder.mkdir(parents=True, exist_ok=True)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            name = f"{PREFIX[split]}-{kind}-ubyte"
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            else:
                (folder / name).write_bytes(content)
        return images, labels

    return write


@pytest.fixture(scope="session")
def betons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packed files of every kind, see ``tests.helpers.betons``; not to be changed."""
    pytest.importorskip("m3d_fast.loaders.ffcv.library", exc_type=ImportError)
    return write_betons(tmp_path_factory.mktemp("betons"))
