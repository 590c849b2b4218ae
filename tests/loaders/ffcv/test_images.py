"""Reading packed files: the right pixels, and every fault an error within seconds."""

import dataclasses
import io
import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from tests.helpers.betons import CLASS_SIZES, JPEG, ORIGINAL, RAW, SIDE, describe, stored_ranges

pytest.importorskip("m3d_fast.loaders.ffcv.library", exc_type=ImportError)

from m3d_fast import SyntheticSet
from m3d_fast.loaders import DataError
from m3d_fast.loaders.ffcv.images import FfcvImages, _Index, load_ffcv
from m3d_fast.loaders.ffcv.packed_file import open_packed
from m3d_fast.loaders.image_files.decoding import decode_image
from m3d_fast.loaders.streaming.prefetcher import Prefetcher

TOTAL = sum(CLASS_SIZES)


def open_images(path: Path, *, workers: int | None = None) -> FfcvImages:
    return FfcvImages(open_packed(path), workers=workers)


@pytest.fixture
def packed(betons: dict[str, Path]) -> Path:
    return betons["raw"]


@pytest.fixture
def beton(packed: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return copy_packed(packed, tmp_path)


def copy_packed(packed: Path, folder: Path) -> Path:
    for name in (packed.name, f"{packed.name}.json"):
        shutil.copy(packed.with_name(name), folder / name)
    return folder / packed.name


def read_rows(back_end: FfcvImages, *row_batches: list[int]) -> list[torch.Tensor]:
    with back_end.read(np.array(rows, np.int64) for rows in row_batches) as tensors:
        return [tensor.clone() for tensor in tensors]


def to_planes(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 255]))


def endless() -> Iterator[np.ndarray]:
    return (np.arange(TOTAL) for _ in itertools.count())


def test_it_says_what_it_holds(packed: Path) -> None:
    back_end = open_images(packed)
    assert back_end.class_names == ("class0", "class1", "class2")
    assert back_end.class_sizes == CLASS_SIZES
    assert back_end.image_shape == (3, SIDE, SIDE)
    assert back_end.source == str(packed)
    assert back_end.name == "FFCV"
    assert back_end.workers == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_raw_pixels_are_exact_in_any_order(packed: Path, workers: int) -> None:
    row_batches = [[20, 0, 3, 3], [7], list(range(TOTAL)) * 5, [], [1, 2]]
    tensors = read_rows(open_images(packed, workers=workers), *row_batches)
    assert len(tensors) == len(row_batches)
    for rows, tensor in zip(row_batches, tensors, strict=True):
        assert tensor.dtype == torch.uint8
        assert tensor.shape == (len(rows), 3, SIDE, SIDE)
        for row, image in zip(rows, tensor, strict=True):
            assert torch.equal(image, to_planes(RAW[row]))


def decode_with_pillow(path: Path, row: int) -> torch.Tensor:
    offset, size = stored_ranges(path)[row]
    with Image.open(io.BytesIO(path.read_bytes()[offset : offset + size])) as file:
        return to_planes(np.array(file))


def test_jpeg_pixels_are_those_of_pillow(betons: dict[str, Path]) -> None:
    (tensor,) = read_rows(open_images(betons["jpeg"]), list(range(TOTAL)))
    for row, image in enumerate(tensor):
        assert torch.equal(image, decode_with_pillow(betons["jpeg"], row))
        assert (image.int() - to_planes(JPEG[row]).int()).abs().float().mean() < 6


def test_originals_become_the_very_pixels_of_image_files(
    betons: dict[str, Path], tmp_path: Path
) -> None:
    (tensor,) = read_rows(open_images(betons["original"]), list(range(len(ORIGINAL))))
    content = betons["original"].read_bytes()
    file = tmp_path / "image.jpg"
    for row, (offset, size) in enumerate(stored_ranges(betons["original"])):
        file.write_bytes(content[offset : offset + size])
        assert torch.equal(tensor[row], decode_image(file, size=SIDE)), ORIGINAL[row].shape


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(375, 500, 224), (500, 333, 224), (224, 301, 224), (90, 120, 100), (41, 700, 40), (9, 8, 8)],
)
def test_resizing_gives_the_bytes_of_pillow(height: int, width: int, side: int) -> None:
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert (resize(image, side) == resize_with_torchvision(image, side)).all()


def test_high_images_are_resized_as_by_pillow_up_to_rounding() -> None:
    image = np.random.default_rng(0).integers(0, 256, (600, 101, 3), dtype=np.uint8)
    difference = resize(image, 64).astype(int) - resize_with_torchvision(image, 64)
    assert np.abs(difference).max() <= 1


def resize(image: np.ndarray, side: int) -> np.ndarray:
    native = load_ffcv()
    out = np.empty((side, side, 3), np.uint8)
    native.resize_crop(image, native.allocate_workspace(1, 1, len(image), side)[-1], out)
    return out


def resize_with_torchvision(image: np.ndarray, side: int) -> np.ndarray:
    whole = functional.resize(Image.fromarray(image), [side], antialias=True)
    return np.asarray(functional.center_crop(whole, [side, side]))


def test_a_tensor_is_valid_until_the_next_is_asked_for(packed: Path) -> None:
    back_end = open_images(packed, workers=2)
    with back_end.read(np.array([step % TOTAL]) for step in range(40)) as tensors:
        for step, tensor in enumerate(tensors):
            if step % 10 == 3:
                time.sleep(0.02)  # time for the threads to overrun
            assert torch.equal(tensor[0], to_planes(RAW[step % TOTAL]))


def test_buffers_are_allocated_once(packed: Path) -> None:
    with open_images(packed, workers=2).read(endless()) as tensors:
        addresses = [next(tensors).data_ptr() for _ in range(40)]
    assert len(set(addresses)) == 4
    assert addresses[:4] * 10 == addresses


def test_what_is_read_ahead_is_bounded(packed: Path) -> None:
    drawn = []

    def iterate_rows() -> Iterator[np.ndarray]:
        for step in itertools.count():
            drawn.append(step)
            yield np.array([0])

    with open_images(packed, workers=2).read(iterate_rows()) as tensors:
        next(tensors)
        time.sleep(0.2)
        assert len(drawn) == 4
        next(tensors)
        time.sleep(0.2)
        assert len(drawn) == 5


def test_leaving_early_leaks_neither_threads_nor_memory(betons: dict[str, Path]) -> None:
    back_end = open_images(betons["large"], workers=3)

    def leave_early() -> None:
        with back_end.read(np.arange(800) % 10 for _ in itertools.count()) as tensors:
            next(tensors)

    leave_early()
    threads, memory = threading.active_count(), resident_bytes()
    for _ in range(20):
        leave_early()
    assert threading.active_count() == threads
    # a reader holds four buffers of 39 MB
    assert resident_bytes() - memory < 10e6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_exception_inside_the_context_ends_the_threads(packed: Path) -> None:
    threads = threading.active_count()

    def interrupted() -> None:
        with open_images(packed, workers=2).read(endless()) as tensors:
            next(tensors)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert threading.active_count() == threads


def test_a_reader_that_was_left_says_so(packed: Path) -> None:
    with open_images(packed).read(endless()) as tensors:
        next(tensors)
    with pytest.raises(DataError, match="was closed: open a new one"):
        next(tensors)


def test_an_error_among_the_rows_reaches_the_reader(packed: Path) -> None:
    def iterate_rows() -> Iterator[np.ndarray]:
        yield np.array([0])
        raise OSError("the rows broke")

    with (
        open_images(packed).read(iterate_rows()) as tensors,
        pytest.raises(DataError, match=r"reading .*raw\.beton failed: OSError\('the rows broke'"),
    ):
        list(tensors)


def test_an_error_in_a_worker_reaches_the_reader(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_end = open_images(packed, workers=2)

    def fail(*_: object) -> None:
        raise MemoryError("none left")

    monkeypatch.setattr(load_ffcv(), "decode", fail)
    threads = threading.active_count()
    with (
        pytest.raises(DataError, match=r"MemoryError.*none left"),
        back_end.read(endless()) as tensors,
    ):
        next(tensors)
    assert threading.active_count() == threads


def test_a_dead_worker_is_an_error_within_seconds(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "m3d_fast.loaders.streaming.prefetcher.Prefetcher._work", lambda prefetcher: None
    )
    started = time.monotonic()
    with (
        pytest.raises(DataError, match=r"a thread that reads .* died"),
        open_images(packed, workers=2).read(endless()) as tensors,
    ):
        next(tensors)
    assert time.monotonic() - started < 3


def test_one_worker_that_dies_among_living_ones_is_an_error_within_seconds(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Prefetcher._work

    def first_takes_work_and_dies(prefetcher: Prefetcher) -> None:
        if threading.current_thread() is not prefetcher._threads[0]:
            work(prefetcher)
        else:
            prefetcher._next_piece()

    monkeypatch.setattr(Prefetcher, "_work", first_takes_work_and_dies)
    threads, started = threading.active_count(), time.monotonic()
    with (
        pytest.raises(DataError, match=r"a thread that reads .* died"),
        open_images(packed, workers=3).read(endless()) as tensors,
    ):
        list(itertools.islice(tensors, 10))
    assert time.monotonic() - started < 3
    assert threading.active_count() == threads


def test_a_flipped_byte_in_an_image_names_it(beton: Path) -> None:
    row = 8  # number 1 of class 1
    offset, size = stored_ranges(beton)[row]
    flip(beton, offset + size // 2)
    back_end = open_images(beton)
    assert len(read_rows(back_end, [row - 1, row + 1])) == 1
    message = r"image 8 of .*raw\.beton, number 1 of class 1 \(class1\), is damaged"
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            read_rows(back_end, [0, row])


def test_every_image_is_compared_once(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: reads.append(a[2]) or pread(*a))
    back_end = open_images(beton, workers=1)
    read_rows(back_end, [3, 4], [4, 3, 5], [5])
    offsets = [offset for offset, _ in stored_ranges(beton)]
    assert reads == [offsets[3], offsets[4], offsets[5]]


@pytest.mark.parametrize("kept", [0.5, 0.9999])
def test_a_file_cut_before_it_is_opened(beton: Path, kept: float) -> None:
    os.truncate(beton, int(beton.stat().st_size * kept))
    with pytest.raises(DataError, match=r"is cut: .* bytes were written"):
        open_images(beton)


@pytest.mark.parametrize("offset", [0, 2, 9, 40, -8, -100])
def test_flipped_bytes_in_header_and_index(beton: Path, offset: int) -> None:
    flip(beton, offset % beton.stat().st_size)
    with pytest.raises(DataError, match="its length or index differs"):
        open_images(beton)


def test_the_sidecar_of_another_file(beton: Path, betons: dict[str, Path]) -> None:
    other = copy_packed(betons["jpeg"], beton.parent)
    Path(f"{beton}.json").replace(f"{other}.json")
    with pytest.raises(DataError, match=r"is cut|not the file that .* describes"):
        open_images(other)


def test_no_sidecar_and_no_file(beton: Path) -> None:
    Path(f"{beton}.json").unlink()
    with pytest.raises(DataError, match="is missing"):
        open_images(beton)
    with pytest.raises(DataError, match="there is no packed file"):
        open_images(beton.with_name("none.beton"))


def test_no_worker(beton: Path) -> None:
    with pytest.raises(DataError, match="at least one worker"):
        open_images(beton, workers=0)


def test_a_sidecar_that_counts_other_images(beton: Path) -> None:
    describe(beton, store="raw", class_sizes=(*CLASS_SIZES, 1), size=SIDE)
    with pytest.raises(DataError, match=r"index of .* is damaged \(21 images instead of 22\)"):
        open_images(beton)


def replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


@pytest.mark.parametrize(
    "change",
    [
        replace,
        Path.unlink,
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: flip(path, path.stat().st_size // 2),
    ],
    ids=["replaced", "removed", "cut", "written to"],
)
def test_a_file_changed_while_it_is_open(beton: Path, change: object) -> None:
    started = time.monotonic()
    with open_images(beton, workers=2).read(endless()) as tensors:
        next(tensors)
        change(beton)  # type: ignore[operator]
        with pytest.raises(DataError, match="was replaced, removed or changed while it was open"):
            list(itertools.islice(tensors, 10))
    assert time.monotonic() - started < 5


def test_a_file_cut_between_looking_and_reading(
    beton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_end = open_images(beton, workers=1)
    read_rows(back_end, list(range(TOTAL)))
    monkeypatch.setattr(
        "m3d_fast.loaders.ffcv.images.file_identity", lambda path: back_end._identity
    )
    os.truncate(beton, stored_ranges(beton)[12][0] + 1)
    with pytest.raises(
        DataError, match=r"image 12 of .*class 2 \(class2\), cannot be read completely"
    ):
        read_rows(back_end, [0, 11], [12])


@pytest.mark.parametrize("damage", ["header", "end", "noise"])
def test_a_jpeg_that_was_damaged_before_it_was_packed(
    betons: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    path = copy_packed(betons["jpeg"], tmp_path)
    offset, size = stored_ranges(path)[8]
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[offset : offset + 2] = b"no"
    elif damage == "end":
        content[offset + 20 : offset + size] = bytes(size - 20)
    else:
        content[offset : offset + size] = np.random.default_rng(0).bytes(size)
    path.write_bytes(content)
    describe(path, store="jpeg:95", class_sizes=CLASS_SIZES, size=SIDE)
    with pytest.raises(DataError, match=r"image 8 of .* class 1 \(class1\), cannot be decoded"):
        read_rows(open_images(path), list(range(TOTAL)))


def test_a_jpeg_with_a_blemish_is_what_pillow_makes_of_it(
    betons: dict[str, Path], tmp_path: Path
) -> None:
    path = copy_packed(betons["jpeg"], tmp_path)
    offset, size = stored_ranges(path)[8]
    content = bytearray(path.read_bytes())
    # libjpeg warns of extraneous bytes before the end marker
    content[offset + size - 12 : offset + size - 2] = bytes(10)
    path.write_bytes(content)
    describe(path, store="jpeg:95", class_sizes=CLASS_SIZES, size=SIDE)
    (tensor,) = read_rows(open_images(path), list(range(TOTAL)))
    for row, image in enumerate(tensor):
        assert torch.equal(image, decode_with_pillow(path, row))


def test_importing_the_loaders_does_not_import_ffcv() -> None:
    code = (
        "import sys, m3d_fast, m3d_fast.loaders, m3d_fast.loaders.ffcv.images\n"
        "assert not {'ffcv', 'numba', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_opening_leaves_threads_of_torch_alone_and_the_process_ends(packed: Path) -> None:
    code = f"""
import numba, numpy, torch
torch.set_num_threads(2)
from pathlib import Path
from m3d_fast.loaders.ffcv.images import FfcvImages
from m3d_fast.loaders.ffcv.packed_file import open_packed
packed = open_packed(Path({str(packed)!r}))
context = FfcvImages(packed, workers=2).read(numpy.arange(4) for _ in iter(int, 1))
tensors = context.__enter__()
next(tensors)
assert torch.get_num_threads() == 2
assert numba.threading_layer() == "omp"
print("never left the context")
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_THREADING_LAYER"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "never left the context\n"


def test_a_condensed_set_is_exported_and_read_again(tmp_path: Path) -> None:
    # of m3d_fast/formats/beton.py, here where the loop around FFCV is compiled already
    names, labels = ("a", "b/c", "d"), torch.arange(3).repeat_interleave(2)
    info = {"dataset": "folder", "method": "m3d"}
    before = SyntheticSet(torch.rand(6, 1, 16, 16), labels, names, 2, (0.1,), (0.4,), info)
    before.export(tmp_path / "set.beton", "beton", decoded=False)
    after = SyntheticSet.load(tmp_path / "set.beton")
    torch.testing.assert_close(after.images, before.images, atol=0.5 / 255 + 1e-6, rtol=0)
    assert after.labels.tolist() == labels.tolist()
    assert (after.class_names, after.factor, after.mean) == (names, 2, (0.1,))
    assert after.info == info
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"set.beton", "set.beton.json", "set.beton.set.json"}


def test_the_index_takes_few_bytes_an_image(packed: Path) -> None:
    index = open_images(packed)._index
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == 22 * TOTAL


def test_the_index_of_imagenet_fits_in_little_memory(
    betons: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ffcv.reader import Reader
    from ffcv.types import ALLOC_TABLE_TYPE

    total = 1_281_167
    sparse = tmp_path / "imagenet.beton"
    sparse.touch()
    os.truncate(sparse, total * 1000)
    sidecar = dataclasses.replace(
        open_packed(betons["raw"]).sidecar,
        class_names=tuple(map(str, range(1000))),
        class_sizes=(1281,) * 999 + (1448,),
        crc32=np.zeros(total, np.uint32),
    )
    kind = Reader(str(betons["raw"])).metadata.dtype

    def open_reader(path: Path) -> SimpleNamespace:
        metadata, table = np.zeros(total, kind), np.zeros(total, ALLOC_TABLE_TYPE)
        metadata["f0"]["data_ptr"] = table["ptr"] = np.arange(total) * 1000
        table["size"] = 999
        return SimpleNamespace(metadata=metadata, alloc_table=table)

    monkeypatch.setattr("m3d_fast.loaders.ffcv.images._open_reader", open_reader)
    tracemalloc.start()
    index = _Index(sparse, sidecar)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.sizes[-1] == 999
    assert kept < 30e6
    assert most < 200e6
