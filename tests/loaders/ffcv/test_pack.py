"""Packing as users run it: real processes, FFCV's own writer and reader."""

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip(
    "m3d_fast.loaders.ffcv.library", reason="packing needs FFCV", exc_type=ImportError
)
pytest.importorskip("skimage")

from benchmarks import imagenet_like
from m3d_fast.loaders import DataError
from m3d_fast.loaders.ffcv.packed_file import open_packed, sidecar_path
from m3d_fast.loaders.ffcv.storing import encode
from m3d_fast.loaders.image_files.decoding import convert_to_rgb, decode_image
from m3d_fast.loaders.pack import main, pack
from m3d_fast.loaders.subsets import subset_classes

CLASSES = subset_classes("imagenette")
SIZE = 32
COMMAND = [sys.executable, "-m", "m3d_fast.loaders.pack", "--dataset", "imagenette"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of every class, among them one of every kind that has to be converted."""
    root = tmp_path_factory.mktemp("imagenet")
    paths = imagenet_like.write_tree(root, CLASSES, 3, shape=(60, 45))
    kinds = (
        imagenet_like.make_grey,
        imagenet_like.make_cmyk,
        imagenet_like.make_png,
        imagenet_like.make_deep,
    )
    for change, path in zip(kinds, paths, strict=False):
        change(path)
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "imagenet")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Restore logging and signals: the command changes those of its process."""
    handlers, on_signal = logging.getLogger().handlers[:], signal.getsignal(signal.SIGTERM)
    level = logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    signal.signal(signal.SIGTERM, on_signal)


def list_files(root: Path) -> list[Path]:
    return [path for name in CLASSES for path in sorted((root / "train" / name).iterdir())]


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command within this process, which has imported FFCV: exit status and stderr."""

    def run(root: Path, *arguments: str) -> tuple[int, str]:
        given = ["--dataset", "imagenette", "--data-root", str(root), "--size", str(SIZE)]
        status = main([*given, "--workers", "1", *arguments])
        return status, capfd.readouterr().err

    return run


def read_stored(path: Path) -> list[tuple[bytes, int, int, int]]:
    """Content, mode, height and width of every image, by FFCV's own reader."""
    from ffcv.reader import Reader

    reader = Reader(str(path))
    assert reader.field_names == ["image", "label"]
    sizes = {int(row["sample_id"]): int(row["size"]) for row in reader.alloc_table}
    content = path.read_bytes()
    found = []
    for row, image in enumerate(reader.metadata["f0"]):
        start = int(image["data_ptr"])
        found.append(
            (
                content[start : start + sizes[row]],
                int(image["mode"]),
                int(image["height"]),
                int(image["width"]),
            )
        )
    labels = reader.metadata["f1"].reshape(-1).tolist()
    assert labels == sorted(labels)
    return found


def decode_pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)


def decode_reference(path: Path) -> np.ndarray:
    return decode_image(path, size=SIZE).permute(1, 2, 0).numpy()


def nothing_left(folder: Path) -> bool:
    return not any(folder.iterdir())


def test_the_command_packs_the_very_pixels(run: Run, root: Path) -> None:
    status, message = run(root, "--workers", "2")
    assert status == 0, message
    path = root / "m3d_fast" / "imagenette-train-32-raw.beton"
    assert "packing 30 images of imagenette (train, 32 px, raw): 0.03 GB in" in message
    assert f"packed 30 images into {path}" in message
    sidecar = open_packed(path).sidecar
    assert (sidecar.dataset, sidecar.size) == ("imagenette", SIZE)
    assert sidecar.class_names == CLASSES
    assert sidecar.class_sizes == (3,) * 10
    assert (sidecar.split, sidecar.store, sidecar.skipped) == ("train", "raw", ())
    assert sidecar.root == str(root)
    assert sidecar.versions["ffcv"] == "1.0.2"
    images = read_stored(path)
    assert len(images) == 30
    for (content, *form), file, checksum in zip(
        images, list_files(root), sidecar.crc32, strict=True
    ):
        assert form == [1, SIZE, SIZE]
        assert content == decode_reference(file).tobytes(), file
        assert checksum == zlib.crc32(content)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        path.name,
        sidecar_path(path).name,
    ]


def test_jpeg_stays_near_the_pixels(run: Run, root: Path) -> None:
    status, message = run(root, "--store", "jpeg:95", "--workers", "1")
    assert status == 0, message
    path = root / "m3d_fast" / "imagenette-train-32-jpeg95.beton"
    assert open_packed(path).sidecar.store == "jpeg:95"
    for (content, *form), file in zip(read_stored(path), list_files(root), strict=True):
        assert form == [0, SIZE, SIZE]
        # JPEG is worst at grain of many colours at 32 px
        assert np.abs(decode_pixels(content) - decode_reference(file)).mean() < 8, file


def test_the_quality_is_kept(root: Path) -> None:
    file = list_files(root)[5]
    good, bad = (encode(file, size=SIZE, store=f"jpeg:{q}").content for q in (100, 20))
    error = [
        np.abs(decode_pixels(c.tobytes()) - decode_reference(file)).mean() for c in (good, bad)
    ]
    assert error[0] < error[1] / 2
    assert good.nbytes > 2 * bad.nbytes


def test_original_keeps_the_bytes(run: Run, root: Path) -> None:
    status, message = run(root, "--store", "original")
    assert status == 0, message
    images = read_stored(root / "m3d_fast" / "imagenette-train-32-original.beton")
    for number, ((content, *form), file) in enumerate(zip(images, list_files(root), strict=True)):
        assert form == [0, 45, 60]
        if number in (1, 2, 3):  # four inks, PNG, 16 bits: FFCV's decoder cannot read them
            assert Image.open(io.BytesIO(content)).mode == "RGB"
            with Image.open(file) as image:
                exact = np.asarray(convert_to_rgb(image), np.int16)
            assert np.abs(decode_pixels(content) - exact).mean() < 8, file
        else:
            assert content == file.read_bytes(), file


def test_the_number_of_workers_changes_no_pixel(run: Run, whole: Path, tmp_path: Path) -> None:
    checksums = []
    for workers in ("1", "3"):
        out = tmp_path / f"{workers}.beton"
        assert run(whole, "--out", str(out), "--workers", workers)[0] == 0
        checksums.append(open_packed(out).sidecar.crc32.tolist())
    assert checksums[0] == checksums[1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_names_all_damaged_files_and_writes_nothing(
    run: Run, root: Path, workers: str
) -> None:
    damaged = [list_files(root)[k] for k in (0, 13, 29)]
    for path in damaged:
        imagenet_like.truncate(path)
    damaged[1].write_bytes(b"")
    status, message = run(root, "--workers", workers)
    assert status == 2
    for path in damaged:
        assert f"the image {path} cannot be decoded" in message
    assert message.count("cannot be decoded") == 3
    assert "3 of 30 images are damaged and listed above, nothing was written" in message
    assert "Traceback" not in message
    assert nothing_left(root / "m3d_fast")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_skip_leaves_them_out_and_says_so(run: Run, root: Path, workers: str) -> None:
    damaged = [list_files(root)[k] for k in (4, 29)]
    for path in damaged:
        imagenet_like.truncate(path)
    status, message = run(root, "--on-bad-image", "skip", "--workers", workers)
    assert status == 0, message
    assert "leaving out 2 damaged images" in message
    path = root / "m3d_fast" / "imagenette-train-32-raw.beton"
    sidecar = open_packed(path).sidecar
    assert sidecar.class_sizes == (3, 2, 3, 3, 3, 3, 3, 3, 3, 2)
    assert [name for name, _ in sidecar.skipped] == [str(p.relative_to(root)) for p in damaged]
    assert all("cannot be decoded" in reason for _, reason in sidecar.skipped)
    good = [file for file in list_files(root) if file not in damaged]
    for (content, *_), file in zip(read_stored(path), good, strict=True):
        assert content == decode_reference(file).tobytes()


def test_a_class_of_damaged_files_alone(run: Run, root: Path) -> None:
    for path in list_files(root)[3:6]:
        imagenet_like.truncate(path, 0.01)
    status, message = run(root, "--on-bad-image", "skip")
    assert status == 2
    assert f"every image of class '{CLASSES[1]}' is damaged" in message
    assert nothing_left(root / "m3d_fast")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--store", "png"], "stored as raw, jpeg:QUALITY"),
        (["--store", "jpeg:101"], "stored as raw, jpeg:QUALITY"),
        (["--split", "val"], "split: 'val' is not known; known: train, test"),
        (["--on-bad-image", "ask"], "on_bad_image: 'ask' is not known; did you mean skip?"),
        (["--workers", "0"], "at least one worker must decode, got 0"),
        (["--out", "photographs.zip"], "ends in .beton, got photographs.zip"),
        (["--size", "3"], "at least 8 pixels, got 3"),
        (["--dataset", "cifar10"], "does not come as image files"),
        (["--dataset", "imagenet10"], "needs the folder"),
    ],
)
def test_wrong_arguments(
    whole: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["--dataset", "imagenette", "--data-root", str(whole), *arguments]) == 2
    assert message in capfd.readouterr().err


def test_flags_are_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--dataset", "imagenette"])
    assert left.value.code == 2
    assert "--data-root; see --help\n" in capfd.readouterr().err


Usage = namedtuple("Usage", "total used free")


def test_too_small_a_disk_is_refused_before_anything_is_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(2**40, 2**40 - 1000, 1000))
    with pytest.raises(DataError, match=r"needs 0\.0\d GB, 0\.00 GB are free on its disk"):
        pack("imagenette", root, size=SIZE)
    assert nothing_left(root / "m3d_fast")


def test_too_small_a_shared_memory_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = {Path("/dev/shm"): 100}
    monkeypatch.setattr(
        "shutil.disk_usage", lambda folder: Usage(0, 0, free.get(Path(folder), 2**40))
    )
    with pytest.raises(DataError, match=r"packing 30 images needs 0 MB in /dev/shm"):
        pack("imagenette", root, size=SIZE)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_fills_up(
    run: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(disk)])
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(0, 0, 2**40))
    try:
        status, message = run(root, "--out", str(disk / "x.beton"), "--workers", "2")
        assert status == 2
        assert "No space left" in message or "not hold what was written" in message
        assert nothing_left(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def start_packing(root: Path, out: Path) -> subprocess.Popen[str]:
    """Packing that has begun to write, with seconds of work left."""
    # a script's background jobs start with Ctrl-C ignored
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command += [*COMMAND, "--data-root", str(root), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        if len(find_children(process.pid)) >= 2:
            return process
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"packing did not begin: {process.communicate()[1]}")


def find_children(pid: int) -> list[int]:
    """Forked processes; not the tracker of shared memory."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        commands = {int(k): Path(f"/proc/{k}/cmdline").read_bytes() for k in found}
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [child for child, command in commands.items() if b"resource_tracker" not in command]


def wait_for_end(processes: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(is_running(pid) for pid in processes):
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work for several seconds: one large image under many names."""
    root = tmp_path_factory.mktemp("many")
    for name in CLASSES:
        folder = root / "train" / name
        folder.mkdir(parents=True)
        first = folder / "0.JPEG"
        imagenet_like.photograph([1], shape=(1500, 1000)).save(first)
        for number in range(1, 60):
            os.link(first, folder / f"{number}.JPEG")
    return root


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_packing_leaves_nothing(many: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "x.beton"
    process = start_packing(many, out)
    workers = find_children(process.pid)
    process.send_signal(number)
    _, message = process.communicate(timeout=20)
    assert process.returncode == 130
    assert message.endswith("interrupted; nothing was written\n")
    assert "Traceback" not in message
    assert wait_for_end(workers)
    assert nothing_left(tmp_path)


def test_killed_packing_leaves_nothing_that_opens(
    run: Run, many: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.beton"
    process = start_packing(many, out)
    workers = find_children(process.pid)
    process.kill()
    process.communicate(timeout=20)
    assert wait_for_end(workers)
    assert not out.exists()
    assert not sidecar_path(out).exists()
    # the next run cleans up
    assert run(whole, "--out", str(out))[0] == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


def test_a_killed_worker_is_an_error_within_seconds(many: Path, tmp_path: Path) -> None:
    process = start_packing(many, tmp_path / "x.beton")
    os.kill(find_children(process.pid)[0], signal.SIGKILL)
    start = time.monotonic()
    _, message = process.communicate(timeout=20)
    assert time.monotonic() - start < 10
    assert process.returncode == 2
    assert "a packing process ended with code -9" in message
    assert nothing_left(tmp_path)


def test_two_at_once_do_not_mix(run: Run, many: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.beton"
    process = start_packing(many, out)
    status, message = run(whole, "--out", str(out))
    assert status == 2
    assert f"another process is packing {out}" in message
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=20)


@pytest.fixture
def in_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def die_before(name: str) -> None:
        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(name, die)

    return die_before


def test_a_death_between_file_and_sidecar_leaves_nothing_that_opens(
    run: Run, root: Path, in_steps: Callable[[str], None]
) -> None:
    path = root / "m3d_fast" / "imagenette-train-32-raw.beton"
    assert run(root)[0] == 0
    open_packed(path)
    in_steps("m3d_fast.loaders.ffcv.packed_file.Sidecar.write")
    with pytest.raises(KeyboardInterrupt):
        pack("imagenette", root, size=SIZE, workers=1)
    with pytest.raises(DataError, match="is missing: packing was interrupted"):
        open_packed(path)


def test_what_differs_when_read_back_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3d_fast.loaders.ffcv import writing

    write = writing.write_images

    def damaging(images: object, path: Path, **settings: object) -> dict[int, str]:
        bad = write(images, path, **settings)
        content = bytearray(path.read_bytes())
        content[content.index(decode_reference(list_files(root)[17]).tobytes()) + 100] ^= 1
        path.write_bytes(content)
        return bad

    monkeypatch.setattr(writing, "write_images", damaging)
    with pytest.raises(DataError, match="does not hold what was written, image 17 first"):
        pack("imagenette", root, size=SIZE, workers=1)
    assert nothing_left(root / "m3d_fast")


def test_an_image_exchanged_meanwhile_is_noticed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m3d_fast.loaders.ffcv import writing

    write = writing.write_images

    def exchanging(images: object, path: Path, **settings: object) -> dict[int, str]:
        bad = write(images, path, **settings)
        shutil.copy(list_files(root)[20], list_files(root)[19])
        return bad

    monkeypatch.setattr(writing, "write_images", exchanging)
    with pytest.raises(DataError, match="changed while it was packed"):
        pack("imagenette", root, size=SIZE, workers=1)


def test_generated_files_are_as_large_as_those_of_imagenet(tmp_path: Path) -> None:
    paths = imagenet_like.write_tree(tmp_path, CLASSES, 8)
    mean = sum(path.stat().st_size for path in paths) / len(paths)
    assert 95_000 < mean < 115_000
    again = imagenet_like.write_tree(tmp_path / "again", CLASSES[:1], 8)
    assert [a.read_bytes() for a in again] == [p.read_bytes() for p in paths[:8]]
    assert len({path.read_bytes() for path in paths}) == 80
