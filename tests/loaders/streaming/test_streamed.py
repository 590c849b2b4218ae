"""Streaming, keeping in memory and mixing the two: always the draws of ``ClassSampler``."""

import itertools
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from m3d_fast.common.hardware import free_bytes
from m3d_fast.loaders import DataError, MemoryImages
from m3d_fast.loaders.image_files.trees import ImageTree
from m3d_fast.loaders.image_files.worker_images import FolderImages
from m3d_fast.loaders.readers.labelled import LabelledImages
from m3d_fast.loaders.resources import spare_bytes
from m3d_fast.loaders.streaming.prefetcher import Fill, Prefetcher
from m3d_fast.loaders.streaming.resident import Resident
from m3d_fast.loaders.streaming.streamed import StreamedImages
from tests.helpers.betons import CLASS_SIZES, RAW

SIZES = (5, 3, 8, 1)
SHAPE = (3, 4, 4)
IMAGES = torch.randint(
    0, 256, (sum(SIZES), *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
IMAGE_BYTES = 48
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
CYCLE = [[0, 2], [3, 1, 1], [2]]


class Shelf:
    """A back end over a tensor, which counts what is read and can be made to fail."""

    name = "shelf"
    class_names = ("ant", "bee", "cat", "dog")
    class_sizes = SIZES
    image_shape = SHAPE
    source = "the test"

    def __init__(self, workers: int = 2, layout: torch.memory_format | None = None) -> None:
        self.workers = workers
        self.layout = layout or torch.contiguous_format
        self.reads = 0
        self.open = 0
        self.read_rows: list[int] = []
        self.bad_row: int | None = None

    @contextmanager
    def _worker(self) -> Iterator[Fill]:
        def fill(rows: np.ndarray, out: np.ndarray) -> None:
            self.read_rows.extend(rows.tolist())
            if self.bad_row in rows:
                raise DataError(f"row {self.bad_row} is bad")
            out[:] = IMAGES.numpy()[rows]

        yield fill

    @contextmanager
    def read(self, row_batches: Iterator[np.ndarray]) -> Iterator[Iterator[torch.Tensor]]:
        self.reads += 1
        self.open += 1
        prefetcher = Prefetcher(
            row_batches,
            self._worker,
            SHAPE,
            source=self.source,
            workers=self.workers,
            layout=self.layout,
        )
        try:
            with prefetcher as tensors:
                served: list[torch.Tensor] = []
                yield (served.append(tensor) or tensor for tensor in tensors)  # type: ignore[func-returns-value]
        finally:
            # the last tensor is not valid any more
            for tensor in served[-1:]:
                tensor.zero_()
            self.open -= 1


def open_streamed(
    shelf: Shelf | None = None, cache: str = "none", **more: object
) -> StreamedImages:
    return StreamedImages(shelf or Shelf(), cache=cache, seed=5, **STATISTICS, **more)  # type: ignore[arg-type]


def open_in_memory() -> MemoryImages:
    labels = np.repeat(np.arange(4), SIZES)
    data = LabelledImages(IMAGES, labels, Shelf.class_names, "the test")
    return MemoryImages(data, seed=5, **STATISTICS)


def limit_memory(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "m3d_fast.loaders.streaming.resident.spare_bytes", lambda device: images * IMAGE_BYTES
    )


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
def shelf(request: pytest.FixtureRequest) -> Shelf:
    """Back ends of either layout."""
    return Shelf(layout=request.param)


@pytest.fixture(params=["streamed", "kept", "some kept", "kept elsewhere"])
def real(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, shelf: Shelf
) -> StreamedImages:
    """The same images from every kind of source."""
    if request.param == "streamed":
        return open_streamed(shelf)
    if request.param == "kept":
        return open_streamed(shelf, cache="device")
    limit_memory(9, monkeypatch)
    images = open_streamed(shelf, cache="auto", classes=[1, 0, 2])
    assert images._reader._resident is not None
    assert images._reader._resident.classes.tolist() == [True, True, False, False]
    # as if the device were not RAM: kept images are gathered by threads
    images._reader._in_ram = request.param == "kept elsewhere"
    return images


def test_layouts(real: StreamedImages, shelf: Shelf) -> None:
    with real.batches(CYCLE, 3) as batches:
        for entry in CYCLE:
            images = next(batches).flatten(0, 1)
            assert images.is_contiguous(memory_format=shelf.layout), entry
    own = real.batch([0, 2], 3), real.take(2, [1, 0]), next(iter(real.ordered(4)))[0]
    assert all(images.is_contiguous() for images in own)


def test_it_says_what_it_holds(real: StreamedImages) -> None:
    assert real.num_classes == 4
    assert real.class_names == Shelf.class_names
    assert real.class_sizes == SIZES
    assert real.image_shape == SHAPE
    assert real.mean == STATISTICS["mean"]
    assert real.std == STATISTICS["std"]
    assert real.device == torch.device("cpu")


def test_batch_and_batches_are_what_memory_images_serve(real: StreamedImages) -> None:
    expected = open_in_memory()
    for classes in ([2, 0], [1, 3, 1]):
        assert torch.equal(real.batch(classes, 3), expected.batch(classes, 3))
    with real.batches(CYCLE, 4) as stream:
        for classes in itertools.islice(itertools.cycle(CYCLE), 20):
            images = next(stream)
            assert images.shape == (len(classes), 4, *SHAPE)
            assert torch.equal(images, expected.batch(classes, 4))
            assert same_state(real, expected)
    assert torch.equal(real.batch([0, 1, 2, 3], 9), expected.batch([0, 1, 2, 3], 9))


def same_state(one: StreamedImages, other: object) -> bool:
    return np.array_equal(one.state_dict()["positions"], other.state_dict()["positions"])  # type: ignore[attr-defined]


def test_take_draws_nothing(real: StreamedImages) -> None:
    expected = open_in_memory()
    assert torch.equal(real.take(2, [7, 0, 7]), expected.take(2, [7, 0, 7]))
    assert torch.equal(real.take(0, torch.tensor([4])), expected.take(0, [4]))
    assert real.take(1, []).shape == (0, *SHAPE)
    assert real.state_dict()["positions"].tolist() == [0, 0, 0, 0]
    with pytest.raises(DataError, match=re.escape("images of class 1 (bee) are 0 to 2, got")):
        real.take(1, [3])
    with pytest.raises(DataError, match="class 4 does not exist"):
        real.take(4, [0])


@pytest.mark.parametrize("batch_size", [1, 4, 17, 100])
def test_ordered_gives_every_image_once_by_class(real: StreamedImages, batch_size: int) -> None:
    pieces = list(real.ordered(batch_size))
    expected = list(open_in_memory().ordered(batch_size))
    assert len(pieces) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(pieces, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, expected_labels)
    with pytest.raises(DataError, match="batch size must be 1 or more"):
        real.ordered(0)


def test_resumed_equals_uninterrupted_at_any_point(real: StreamedImages) -> None:
    for served in (0, 1, 4):
        with real.batches(CYCLE, 3) as stream:
            for _ in range(served):
                next(stream)
            state = real.state_dict()
            following = next(stream).clone()
        resumed = open_streamed()
        resumed.load_state_dict(state)
        start = served % len(CYCLE)
        with resumed.batches(CYCLE[start:] + CYCLE[:start], 3) as stream:
            assert torch.equal(next(stream), following)


def test_state_counts_what_was_served_not_what_was_read_ahead() -> None:
    shelf = Shelf()
    real = open_streamed(shelf)
    with real.batches([[0, 1]], 2) as stream:
        assert real.state_dict()["positions"].tolist() == [0, 0, 0, 0]
        next(stream)
        while len(shelf.read_rows) < 12:  # two more
            threading.Event().wait(0.01)
        assert real.state_dict()["positions"].tolist() == [2, 2, 0, 0]


def test_a_batch_is_the_callers_own(real: StreamedImages) -> None:
    before = real.take(0, [0, 1])
    real.take(0, [0, 1]).zero_()
    first = real.batch([0, 1], 2)
    copy = first.clone()
    real.batch([0, 1], 2)
    assert torch.equal(first, copy)
    assert torch.equal(real.take(0, [0, 1]), before)


def test_drawing_within_batches_is_refused(real: StreamedImages) -> None:
    with real.batches(CYCLE, 2) as stream:
        next(stream)
        real.batch([0], 1)
        with pytest.raises(DataError, match=r"leave the context of batches\(\) before"):
            next(stream)


@pytest.mark.parametrize(
    ("cycle", "per_class", "message"),
    [
        ([], 1, "batches need classes to draw from"),
        ([[0], []], 1, "batches need classes to draw from"),
        ([[0], [4]], 1, "class 4 does not exist"),
        ([[0]], 0, "at least one image per class"),
    ],
)
def test_wrong_batches_are_refused_at_once(
    cycle: list[list[int]], per_class: int, message: str
) -> None:
    with pytest.raises(DataError, match=message), open_streamed().batches(cycle, per_class):
        pass


def test_an_error_while_reading_ahead_is_raised_and_nothing_counted() -> None:
    shelf = Shelf()
    real = open_streamed(shelf)
    shelf.bad_row = 6  # in class 1
    threads = threading.active_count()
    with pytest.raises(DataError, match="row 6 is bad"), real.batches([[0], [1]], 3) as stream:
        list(stream)
    assert real.state_dict()["positions"][1] == 0
    with pytest.raises(DataError, match="row 6 is bad"):
        real.batch([0, 1], 3)
    assert real.state_dict()["positions"][1] == 0
    assert threading.active_count() == threads
    assert shelf.open == 0


@pytest.mark.parametrize("cache", ["none", "auto", "host"])
def test_rows_of_any_classes_are_read_in_order_beside_the_batches(
    cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_memory(9, monkeypatch)
    real, twin, threads = open_streamed(cache=cache), open_in_memory(), threading.active_count()
    rows = [np.array([16, 0, 4]), np.array([7, 7])]
    with real.batches(CYCLE, 2) as stream:
        assert torch.equal(next(stream), twin.batch(CYCLE[0], 2))
        for images in (real, twin):
            with images.read_rows(lambda: iter(rows)) as batches:
                for batch, wanted in zip(batches, rows, strict=True):
                    assert torch.equal(batch, IMAGES[wanted])
        assert torch.equal(next(stream), twin.batch(CYCLE[1], 2))
    assert threading.active_count() == threads


def test_what_is_kept_is_read_once_and_in_order() -> None:
    shelf = Shelf(workers=1)
    real = open_streamed(shelf, cache="device")
    assert shelf.read_rows == list(range(17))
    threads = threading.active_count()
    with real.batches(CYCLE, 4) as stream:
        for _ in range(10):
            next(stream)
        assert threading.active_count() == threads
    list(real.ordered(4))
    assert shelf.reads == 1


def test_only_what_is_not_kept_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(9, monkeypatch)
    shelf = Shelf(workers=1)
    real = open_streamed(shelf, cache="auto", classes=[1, 0, 2])
    assert sorted(shelf.read_rows) == list(range(8))
    shelf.read_rows.clear()
    real.batch([1, 0], 5)
    assert shelf.reads == 1
    real.batch([1, 0, 2], 5)
    assert shelf.reads == 2
    assert set(shelf.read_rows) <= set(range(8, 16))


@pytest.mark.parametrize(
    ("cache", "fitting", "classes", "line"),
    [
        (
            "auto",
            17,
            None,
            "4 of 4 classes (17 images, 0.00 GB) are kept in RAM, read once by shelf",
        ),
        (
            "auto",
            16,
            None,
            "3 of 4 classes (16 images, 0.00 GB) are kept in RAM, read once by shelf, "
            "1 are streamed by shelf",
        ),
        ("auto", 4, None, "4 classes are streamed by shelf, none is kept in memory"),
        (
            "auto",
            4,
            [3, 1],
            "2 of 2 classes (4 images, 0.00 GB) are kept in RAM, read once by shelf",
        ),
        ("host", 0, [2], "1 of 1 classes (8 images, 0.00 GB) are kept in RAM, read once by shelf"),
        ("none", 99, [2], "1 classes are streamed by shelf, none is kept in memory"),
    ],
)
def test_one_line_says_what_is_where(
    cache: str,
    fitting: int,
    classes: list[int] | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit_memory(fitting, monkeypatch)
    with caplog.at_level(logging.INFO, logger="m3d_fast"):
        open_streamed(cache=cache, classes=classes)
    assert caplog.messages == [f"the test: {line}"]


def test_filling_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("m3d_fast.loaders.streaming.resident._PIECE_BYTES", 7 * IMAGE_BYTES)
    monkeypatch.setattr("m3d_fast.common.progress.PLAIN_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="m3d_fast"):
        real = open_streamed(cache="device")
    assert [m.split(",")[0] for m in caplog.messages[1:]] == [
        "reading the test 7/17",
        "reading the test 14/17",
        "reading the test 17/17",
    ]
    assert torch.equal(torch.cat([images for images, _ in real.ordered(5)]), IMAGES)


@pytest.mark.parametrize("cache", ["device", "host"])
def test_a_cache_that_does_not_fit_is_refused(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3d_fast.loaders.resources.free_bytes", lambda device: 17 * 48 - 1)
    sizes = r"0\.00 GB on cpu, 0\.00 GB are free"
    message = rf"the cache '{cache}' of the test at 4 px needs {sizes}: take 'auto'"
    shelf = Shelf()
    with pytest.raises(DataError, match=message):
        open_streamed(shelf, cache=cache)
    assert shelf.reads == 0
    open_streamed(shelf, cache=cache, classes=[0, 1, 2])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(
        DataError, match="cache: 'gpu' is not known; known: auto, device, host, none"
    ):
        open_streamed(cache="gpu")
    with pytest.raises(DataError, match="class 4 does not exist"):
        open_streamed(cache="auto", classes=[4])
    with pytest.raises(DataError, match="one number for each of 3 channels, got 1 and 3"):
        StreamedImages(Shelf(), mean=(0.5,), std=(0.2, 0.2, 0.2))


def test_the_memory_with_more_classes_is_chosen_the_device_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from m3d_fast.loaders.streaming.resident import _choose_memory

    gpu, host = torch.device("cuda"), torch.device("cpu")
    spare = {gpu: 0, host: 0}
    monkeypatch.setattr("m3d_fast.loaders.streaming.resident.spare_bytes", spare.__getitem__)
    for on_gpu, in_ram, expected in (
        (30, 99, (gpu, 3)),
        (29, 99, (host, 3)),
        (20, 29, (gpu, 2)),
        (9, 20, (host, 2)),
        (0, 0, (gpu, 0)),
    ):
        spare.update({gpu: on_gpu, host: in_ram})
        assert _choose_memory([gpu, host], [10, 10, 10]) == expected


def test_half_of_the_memory_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (70, 80))
    assert spare_bytes(torch.device("cuda")) == 30
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (30, 80))
    assert spare_bytes(torch.device("cuda")) == 0
    monkeypatch.setattr("m3d_fast.loaders.resources.free_bytes", lambda device: 64)
    assert spare_bytes(torch.device("cpu")) == 32
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert spare_bytes(torch.device("cpu")) == 4


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("", ("memory.max", "memory.current", "inactive_file")),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_a_containers_limit_counts(
    folder: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    monkeypatch.setattr("m3d_fast.common.hardware._CONTROL_GROUPS", tmp_path)
    unlimited = free_bytes(torch.device("cpu"))
    limit, used, cached = names
    (group / limit).write_text("1000000\n")
    (group / used).write_text("600000\n")
    (group / "memory.stat").write_text(f"other 5\n{cached} 50000\n")
    assert free_bytes(torch.device("cpu")) == 450000 < unlimited
    (group / limit).write_text("max\n")
    assert free_bytes(torch.device("cpu")) > 450000


def test_gathering_from_ram_uses_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    index = np.full(6, -1, np.int32)
    index[[4, 2]] = [0, 1]
    resident = Resident(IMAGES[:2], index, np.array([True]))
    with resident.read(iter([np.array([2, 4, 4]), np.array([2])])) as tensors:
        assert torch.equal(next(tensors), IMAGES[[1, 0, 0]])
        assert torch.equal(next(tensors), IMAGES[[1]])


@pytest.mark.parametrize("workers", [1, 2])
def test_every_back_end_serves_the_same(
    betons: dict[str, Path], tmp_path: Path, workers: int
) -> None:
    from PIL import Image

    from m3d_fast.loaders.ffcv.images import FfcvImages
    from m3d_fast.loaders.ffcv.packed_file import open_packed

    ends = np.cumsum(CLASS_SIZES)
    files: dict[str, list[Path]] = {f"class{index}": [] for index in range(len(CLASS_SIZES))}
    for row, image in enumerate(RAW):
        name = f"class{np.searchsorted(ends, row, side='right')}"
        path = tmp_path / f"{row:03}.png"
        Image.fromarray(image).save(path)
        files[name].append(path)
    folder = FolderImages(ImageTree(tmp_path, files), 16, workers=workers)
    packed = FfcvImages(open_packed(betons["raw"]), workers=workers)
    one, other = (
        StreamedImages(back_end, cache="none", seed=3, **STATISTICS)  # type: ignore[arg-type]
        for back_end in (folder, packed)
    )
    cycle = [[1, 0], [2]]
    with one.batches(cycle, 6) as ones, other.batches(cycle, 6) as others:
        for _ in range(9):
            assert torch.equal(next(ones), next(others))
    assert same_state(one, other)
    assert torch.equal(one.take(2, [8, 0]), other.take(2, [8, 0]))


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [0, 9, 17])
@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_on_a_gpu(place: str, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "m3d_fast.loaders.streaming.resident.spare_bytes",
        lambda device: kept * IMAGE_BYTES if device.type == place else 0,
    )
    real = open_streamed(cache="auto", device="cuda")
    expected = open_in_memory()
    with real.batches(CYCLE, 300) as stream:
        for classes in itertools.islice(itertools.cycle(CYCLE), 30):
            # work that is still queued when the next batch is requested
            images = next(stream)
            total = images.double()
            for _ in range(20):
                total = total + images
            assert images.device == real.device
            reference = expected.batch(classes, 300).double() * 21
            assert torch.equal(total.cpu(), reference)
    assert torch.equal(real.take(2, [7, 0]).cpu(), expected.take(2, [7, 0]))
    torch.testing.assert_close(
        torch.cat([images for images, _ in real.ordered(4)]).cpu(), IMAGES, rtol=0, atol=0
    )
