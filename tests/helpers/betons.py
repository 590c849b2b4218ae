"""Packed files written by FFCV itself, without our packer."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np

from m3d_fast.loaders.ffcv.packed_file import Sidecar, index_checksum

SIDE = 16
CLASS_SIZES = (7, 5, 9)

# in a separate process: the writer forks, which a process with threads should not
_WRITE = """
import sys
import numba.typed
import numpy as np
numba.typed.Dict = dict  # FFCV's table of modes, which would be compiled for seconds
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter

class Images:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return np.asarray(self.images[row], np.uint8), 0

for path in sys.argv[1:]:
    images = np.load(path + ".npy", allow_pickle=True)
    field = RGBImageField(write_mode="raw" if "raw" in path else "jpg", jpeg_quality=95)
    writer = DatasetWriter(path, {"image": field, "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(Images(images), chunksize=1000)
"""


def smooth_images(
    shapes: list[tuple[int, int]], seed: int = 0, *, waves: float = 6
) -> list[np.ndarray]:
    """Images that JPEG changes little: few waves each, uint8 ``(H, W, 3)``, all different."""
    generator = np.random.default_rng(seed)
    images = []
    for height, width in shapes:
        y, x = np.mgrid[:height, :width] / min(height, width)
        wave = generator.uniform(1, waves, (2, 3)), generator.uniform(0, 6, 3)
        value = np.sin(x[..., None] * wave[0][0] + y[..., None] * wave[0][1] + wave[1])
        images.append(np.rint(127.5 + 127.5 * value).astype(np.uint8))
    return images


RAW = smooth_images([(SIDE, SIDE)] * sum(CLASS_SIZES))
JPEG = smooth_images([(SIDE, SIDE)] * sum(CLASS_SIZES), seed=1, waves=2)
ORIGINAL = smooth_images(
    [(40, 64), (64, 40), (48, 48), (SIDE, SIDE), (SIDE, 20), (33, 31)], seed=2, waves=2
)
LARGE = smooth_images([(128, 128)] * 10)


def write_betons(folder: Path) -> dict[str, Path]:
    """Write ``raw``, ``jpeg``, ``original`` and ``large`` (128 px) files and their sidecars."""
    kinds = {
        "raw": (RAW, "raw", CLASS_SIZES, SIDE),
        "jpeg": (JPEG, "jpeg:95", CLASS_SIZES, SIDE),
        "original": (ORIGINAL, "original", (4, 2), SIDE),
        "large": (LARGE, "jpeg:95", (10,), 128),
    }
    paths = {name: folder / f"{name}.beton" for name in kinds}
    for name, (images, *_) in kinds.items():
        array = np.empty(len(images), dtype=object)
        array[:] = images
        np.save(folder / f"{name}.beton.npy", array, allow_pickle=True)
    written = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _WRITE, *(path.name for path in paths.values())],
        cwd=folder,
        # the one threading layer of numba that survives the writer's forks on any machine
        env=os.environ | {"NUMBA_THREADING_LAYER": "workqueue"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert written.returncode == 0, written.stderr
    for name, (_, store, class_sizes, size) in kinds.items():
        describe(paths[name], store=store, class_sizes=class_sizes, size=size)
    return paths


def stored_ranges(path: Path) -> list[tuple[int, int]]:
    """The bytes of every image in the file, ``(offset, size)`` in row order."""
    from ffcv.reader import Reader

    reader = Reader(str(path))
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    return [(int(start), int(sizes[start])) for start in reader.metadata["f0"]["data_ptr"]]


def describe(path: Path, *, store: str, class_sizes: tuple[int, ...], size: int) -> None:
    """Write a sidecar for the current content of a packed file."""
    from ffcv.reader import Reader

    content = path.read_bytes()
    reader = Reader(str(path))
    start = reader.header.dtype.itemsize + reader.field_descriptors.nbytes + reader.metadata.nbytes
    ranges = ((0, start), (int(reader.header["alloc_table_ptr"]), len(content)))
    Sidecar(
        dataset="folder",
        split="train",
        size=size,
        store=store,
        class_names=tuple(f"class{index}" for index in range(len(class_sizes))),
        class_sizes=class_sizes,
        skipped=(),
        bytes=len(content),
        index_ranges=ranges,
        index_checksum=index_checksum(path, ranges),
        crc32=np.array(
            [zlib.crc32(content[a : a + n]) for a, n in stored_ranges(path)], dtype=np.uint32
        ),
        root="the test",
        versions={},
    ).write(path)
