import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from m3d_fast.loaders import ClassSampler, DataError
from m3d_fast.loaders.image_files import worker_images
from m3d_fast.loaders.image_files.decoding import decode_image
from m3d_fast.loaders.image_files.trees import ImageTree, folder_tree
from m3d_fast.loaders.image_files.worker_images import FolderImages
from tests.helpers.commands import environment

SIZE = 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> ImageTree:
    """300 images in three classes of different size, in every colour space."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    modes = itertools.cycle(["RGB", "L", "CMYK"])
    for name, count in (("ant", 7), ("bee", 200), ("cow", 93)):
        (root / name).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (20, 18 + number % 9, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).convert(next(modes))
            # grey ones are PNG under the name of a JPEG
            form = "PNG" if image.mode == "L" else "JPEG"
            image.save(root / name / f"{number:03}.JPEG", form)
    return folder_tree(root, "train")


@pytest.fixture(scope="module")
def pixels(tree: ImageTree) -> torch.Tensor:
    """Every image by its row."""
    paths = [path for members in tree.files.values() for path in members]
    return torch.stack([decode_image(path, size=SIZE) for path in paths])


def find_children() -> set[int]:
    """Processes below this one, the server's forks and those gone but not waited for included."""
    below: set[int] = set()
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat[1])
    while more := {pid for pid, up in parents.items() if up in below | {os.getpid()}} - below:
        below |= more
    return below


def endless(rows: int = 40) -> Iterator[np.ndarray]:
    while True:
        yield np.arange(rows)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_rows_are_the_trees_images_in_the_given_order(
    workers: int, tree: ImageTree, pixels: torch.Tensor
) -> None:
    images = FolderImages(tree, SIZE, workers=workers)
    assert (images.class_names, images.class_sizes) == (("ant", "bee", "cow"), (7, 200, 93))
    assert images.image_shape == (3, SIZE, SIZE)
    # longer than a worker's piece and shorter, out of order, repeated, none at all
    generator = np.random.default_rng(1)
    row_batches = [generator.integers(0, 300, count) for count in (100, 3, 32, 0, 33, 64, 1, 150)]
    row_batches.append(np.array([0, 6, 7, 206, 207, 299, 299, 0]))
    with images.read(iter(row_batches)) as batches:
        for rows in row_batches:
            assert torch.equal(next(batches), pixels[rows])
        assert next(batches, None) is None


@pytest.mark.parametrize("workers", [1, 2])
def test_endless_rows_are_the_samplers_sequence(
    workers: int, tree: ImageTree, pixels: torch.Tensor
) -> None:
    starts = np.array([0, 7, 207])
    images = FolderImages(tree, SIZE, workers=workers)

    def draw_rows(sampler: ClassSampler) -> Iterator[np.ndarray]:
        while True:
            yield (sampler.draw([2, 0], 24) + starts[[2, 0], None]).ravel()

    expected = draw_rows(ClassSampler(images.class_sizes, 5))
    with images.read(draw_rows(ClassSampler(images.class_sizes, 5))) as batches:
        for batch, rows in zip(itertools.islice(batches, 25), expected, strict=False):
            assert torch.equal(batch, pixels[rows])


def test_few_rows_start_no_process(tree: ImageTree, pixels: torch.Tensor) -> None:
    before = find_children()
    with FolderImages(tree, SIZE, workers=2).read(iter([np.arange(256)])) as batches:
        assert torch.equal(next(batches), pixels[:256])
        assert find_children() == before


def test_workers_decode_ahead_and_no_more_than_stated(tree: ImageTree) -> None:
    requested = []

    def iterate_rows() -> Iterator[np.ndarray]:
        for rows in endless(64):
            requested.append(len(rows))
            yield rows

    with FolderImages(tree, SIZE, workers=1).read(iterate_rows()) as batches:
        next(batches)
        time.sleep(0.3)
        # 320 rows to find out whether there are few in all, the batch read, two pieces ahead
        assert sum(requested) <= 320 + 64
        for _ in range(20):
            next(batches)
        assert 21 * 64 < sum(requested) <= 21 * 64 + 2 * 32 + 64


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["truncated", "gone"])
def test_a_damaged_image_is_named(workers: int, damage: str, tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(150):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / name / f"{number:03}.png")
    images = FolderImages(folder_tree(tmp_path, "train"), SIZE, workers=workers)
    bad = tmp_path / "bee" / "077.png"
    if damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:50])
    else:
        bad.unlink()
    message = f"^the image {bad} cannot be decoded"
    row_batches = itertools.repeat(np.arange(300))
    with images.read(row_batches) as batches, pytest.raises(DataError, match=message):
        next(batches)


def test_a_killed_worker_is_an_error_within_seconds(
    tree: ImageTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch looks after its workers every five seconds, which the test would wait for
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
    with FolderImages(tree, SIZE, workers=2).read(endless()) as batches:
        next(batches)
        for worker in find_workers():
            os.kill(worker, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(DataError, match=r"a process decoding images of .* ended .*--workers"):
            list(itertools.islice(batches, 1000))
        assert time.monotonic() - start < 30


def find_workers() -> set[int]:
    """Forks of the fork server."""
    server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    listed = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return {int(pid) for pid in listed}


def test_leaving_early_leaks_nothing(tree: ImageTree) -> None:
    images = FolderImages(tree, SIZE, workers=2)

    def leave(error: type[Exception] | None) -> None:
        with images.read(endless(300)) as batches:
            next(batches)
            if error:
                raise error

    def count_open_files() -> int:
        gc.collect()  # images in flight are files, some of them held by cycles
        return len(os.listdir("/proc/self/fd"))

    leave(None)
    before, files = find_children(), count_open_files()
    for number in range(20):
        if number % 2:
            with pytest.raises(KeyError):
                leave(KeyError)
        else:
            leave(None)
    assert not find_workers()
    assert find_children() <= before
    assert count_open_files() <= files + 2


def test_the_global_generator_is_not_touched(tree: ImageTree) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with FolderImages(tree, SIZE, workers=1).read(endless(300)) as batches:
        next(batches)
    assert torch.equal(torch.rand(2), expected)


def test_more_workers_than_cores_are_not_started(tree: ImageTree) -> None:
    cores = len(os.sched_getaffinity(0))
    assert FolderImages(tree, SIZE, workers=1000).workers == cores
    assert FolderImages(tree, SIZE).workers == cores
    with pytest.raises(DataError, match="the number of workers must be 0 or more, got -1"):
        FolderImages(tree, SIZE, workers=-1)


SCRIPT = """
import signal
import sys
from pathlib import Path
import numpy as np
from m3d_fast.loaders.image_files.trees import folder_tree
from m3d_fast.loaders.image_files.worker_images import FolderImages

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
print("started")
images = FolderImages(folder_tree(Path(sys.argv[1]), "train"), 16, workers=2)
count = 0
with images.read(iter(np.arange(300) for _ in iter(int, 1))) as batches:
    for batch in batches:
        count += 1
        print(count, flush=True)
        if count == int(sys.argv[2]):
            break
print("done", batch.sum().item())
"""


def start(arguments: list[str | Path]) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def test_ctrl_c_reaches_the_reader_alone_and_no_script_is_run_again(
    tree: ImageTree, pixels: torch.Tensor, tmp_path: Path
) -> None:
    """Workers continue: the engine finishes its iteration. The script has no main guard."""
    handled = SCRIPT.replace("signal.default_int_handler", "lambda *_: None")
    (tmp_path / "script.py").write_text(handled)
    process = start([tmp_path / "script.py", tree.folder, "12"])
    assert process.stdout
    first = [process.stdout.readline() for _ in range(2)]
    os.killpg(process.pid, signal.SIGINT)
    out = process.stdout.read()  # communicate() would lose what lies in its buffer
    _, err = process.communicate(timeout=240)
    counted = [f"{number}\n" for number in range(1, 13)]
    assert (process.returncode, err) == (0, "")
    assert "".join(first) + out == "".join(["started\n", *counted, f"done {pixels.sum()}\n"])


def test_an_interrupted_reader_is_quiet_and_leaves_no_process(tree: ImageTree) -> None:
    process = start(["-", tree.folder, "100000"])
    assert process.stdin
    assert process.stdout
    process.stdin.write(SCRIPT)
    process.stdin.close()
    process.stdin = None
    for _ in range(3):
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode in (1, -signal.SIGINT)
    assert err.count("Traceback") == 1, err
    assert err.rstrip().endswith("KeyboardInterrupt")
    end = time.monotonic() + 20
    while process_group_alive(process.pid):
        assert time.monotonic() < end, "processes were left behind"
        time.sleep(0.1)


def test_a_worker_prints_every_error_but_that_the_reader_hung_up(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    handled = signal.getsignal(signal.SIGINT)
    try:
        worker_images._leave_interrupts_to_the_reader(0)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handled)
    sys.excepthook(ConnectionResetError, ConnectionResetError(104, "reset"), None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("damaged"), None)
    assert "ValueError: damaged" in capsys.readouterr().err


def process_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
