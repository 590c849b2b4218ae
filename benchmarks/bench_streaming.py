"""The cost of class-wise order, of resuming and of long runs when packed images are streamed.

    make bench

One core. The peers are FFCV's own loader in its sequential order over the same file, in one long
epoch, with one thread, and our reader in that order; all are first asserted to read the same
pixels. The processor time of all threads is compared. Files are packed by
``m3d_fast.loaders.pack`` at 224 px from generated photographs.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ffcv")

from benchmarks.imagenet_like import write_tree
from m3d_fast.loaders.ffcv.images import FfcvImages
from m3d_fast.loaders.ffcv.packed_file import open_packed
from m3d_fast.loaders.streaming.streamed import StreamedImages
from m3d_fast.loaders.subsets import subset_classes

pytestmark = pytest.mark.usefixtures("one_core")

PER_CLASS = 260  # a fifth of ImageNet
BATCH = 200  # images, 20 of every class
BATCHES = {"raw": 400, "jpeg:95": 60}  # per round: the last 3 prefetched ones are wasted
# processor time over that of FFCV's sequential order; for raw pixels it is reported, not asserted
MAX_RATIO = {"jpeg:95": 1.05}
ROUNDS = 7
MEMORY_BATCHES = 10_000
JPEG_DIFFERENCE = 3.0  # mean, of 255
FAR = 10**12  # images drawn of every class before resuming
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("imagenet")
    write_tree(root, subset_classes("imagenet10"), PER_CLASS, shape=(256, 256))
    return root


@pytest.fixture(scope="session")
def packed(tree: Path) -> Callable[[str], Path]:
    def pack(store: str) -> Path:
        out = tree / f"{store.replace(':', '')}.beton"
        if not out.exists():
            command = [sys.executable, "-m", "m3d_fast.loaders.pack", "--dataset", "imagenet10"]
            command += ["--data-root", str(tree), "--store", store, "--out", str(out)]
            subprocess.run(command, check=True)
        return out

    return pack


def verify_checksums(back_end: FfcvImages) -> None:
    """Read every image once: the first reading verifies its checksum."""
    for _ in StreamedImages(back_end, cache="none", **STATISTICS).ordered(BATCH):
        pass


def make_class_wise_reader(path: Path, batches: int) -> Callable[[], int]:
    back_end = FfcvImages(open_packed(path))
    verify_checksums(back_end)
    real = StreamedImages(back_end, cache="none", **STATISTICS)

    def run() -> int:
        with real.batches([range(10)], BATCH // 10) as stream:
            return sum(next(stream).shape[1] * 10 for _ in range(batches))

    return run


def make_ffcv_reader(path: Path, batches: int) -> Callable[[], int]:
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    loader = Loader(
        str(path),
        batch_size=BATCH,
        num_workers=1,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        indices=np.resize(np.arange(10 * PER_CLASS), batches * BATCH),
        pipelines={
            "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )
    first = next(iter(loader))[0].clone()
    with FfcvImages(open_packed(path)).read(iter([np.arange(BATCH)])) as tensors:
        difference = (next(tensors).int() - first.int()).abs().float()
    # FFCV decodes JPEG with the fast, less exact transform and upsampling
    assert difference.mean() <= (JPEG_DIFFERENCE if "jpeg" in path.name else 0), difference.mean()
    return lambda: sum(len(images) for images, _ in loader)


def make_sequential_reader(path: Path, batches: int) -> Callable[[], int]:
    back_end = FfcvImages(open_packed(path))
    batch_rows = np.resize(np.arange(10 * PER_CLASS), (batches, BATCH))

    def run() -> int:
        with back_end.read(iter(batch_rows)) as tensors:
            return sum(len(images) for images in tensors)

    return run


@pytest.mark.parametrize("store", list(BATCHES))
def test_class_wise_against_sequential(time_in_turn, benchmark, packed, store: str) -> None:
    path, batches = packed(store), BATCHES[store]
    peers = {
        "class-wise": make_class_wise_reader(path, batches),
        "FFCV sequential": make_ffcv_reader(path, batches),
        "sequential": make_sequential_reader(path, batches),
    }
    assert {run() for run in peers.values()} == {batches * BATCH}
    used: dict[str, list[float]] = {name: [] for name in peers}
    time_in_turn({name: meter(run, used[name]) for name, run in peers.items()}, rounds=ROUNDS)
    seconds = {name: statistics.median(times) for name, times in used.items()}
    per_second = {name: batches * BATCH / value for name, value in seconds.items()}
    benchmark.extra_info["case"] = f"{batches} batches of {BATCH} images of 224 px from {store}"
    benchmark.extra_info["images_per_processor_second"] = per_second
    print(store, per_second)
    if store in MAX_RATIO:
        assert seconds["class-wise"] <= MAX_RATIO[store] * seconds["FFCV sequential"]


def meter(run: Callable[[], int], used: list[float]) -> Callable[[], None]:
    """A function that calls ``run`` and appends the processor time of all threads to ``used``."""

    def once() -> None:
        start = time.process_time()
        run()
        used.append(time.process_time() - start)

    return once


def test_resuming_costs_the_same_anywhere(time_in_turn, packed) -> None:
    back_end = FfcvImages(open_packed(packed("raw")))
    verify_checksums(back_end)

    def make_resumed_run(position: int) -> Callable[[], None]:
        def run() -> None:
            real = StreamedImages(back_end, cache="none", **STATISTICS)
            real.load_state_dict({"positions": np.full(10, position)})
            with real.batches([range(10)], BATCH // 10) as stream:
                next(stream)

        return run

    time_in_turn(
        {"at the start": make_resumed_run(0), f"after {FAR} images": make_resumed_run(FAR)}
    )


def test_memory_stays(benchmark, packed) -> None:
    real = StreamedImages(FfcvImages(open_packed(packed("raw"))), cache="none", **STATISTICS)

    def run() -> None:
        with real.batches([range(10)], 2) as stream:
            for number in range(MEMORY_BATCHES):
                next(stream)
                if number == 99:
                    benchmark.extra_info["megabytes_at_start"] = resident_megabytes()
            benchmark.extra_info["megabytes_at_end"] = resident_megabytes()

    benchmark.pedantic(run, rounds=1)
    growth = benchmark.extra_info["megabytes_at_end"] - benchmark.extra_info["megabytes_at_start"]
    assert growth < 10


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
