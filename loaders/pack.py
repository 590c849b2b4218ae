"""How does a folder of images become one packed file? ``python -m m3d_fast.loaders.pack``."""

import argparse
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..common.errors import DataError
from ..common.files import sync_folder
from ..common.hardware import usable_cores
from .catalog import image_side
from .ffcv.disk_space import largest_image, refuse_without_disk
from .ffcv.packed_file import Packed, default_file, index_checksum, sidecar
from .ffcv.storing import quality
from .image_files.layouts import image_tree
from .image_files.trees import ClassFiles, ImageTree
from .subsets import file_name

log = logging.getLogger("m3d_fast")

_DONE, _MISTAKE, _INTERRUPTED = 0, 2, 130  # exit statuses
_LIBRARIES = ("ffcv", "pillow", "torchvision", "opencv-python-headless")


def pack(
    name: str,
    root: str | os.PathLike[str],
    *,
    split: str = "train",
    size: int | None = None,
    store: str = "raw",
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    on_bad_image: str = "stop",
) -> Path:
    """Write one split of a data set of image files to one file that FFCV reads.

    Every image is decoded whole. The file appears under its name, with its sidecar, only when all
    of it has been written and read back. FFCV's writer forks: call this in a process in which no
    FFCV loader has run, best from the command line.

    Args:
        name: a data set of image files, such as "imagenet100".
        root: its folder.
        split: "train" or "test".
        size: side of the images in pixels; None for the data set's own.
        store: "raw" (the pixels of ``decode_image``), "jpeg:Q" (the same at quality Q) or
            "original" (the files as they are, cropped when they are read).
        out: the file, ending in ``.beton``; None for ``default_file``.
        workers: processes that decode; None for one per core.
        on_bad_image: "stop", naming all damaged images and writing nothing, or "skip".

    Returns:
        The packed file.

    Raises:
        DataError: if anything asked for is wrong, images are damaged, the disk is too small, or
            a process fails.
    """
    side = image_side(name, size)
    if split not in ("train", "test") or on_bad_image not in ("stop", "skip"):
        raise DataError(
            "the split is train or test and bad images make it stop or skip, "
            f"got '{split}' and '{on_bad_image}'"
        )
    if workers is not None and workers < 1:
        raise DataError(f"at least one worker must decode, got {workers}")
    quality(store)
    folder = Path(root).expanduser()
    tree = image_tree(name, folder, split)
    path = default_file(name, folder, split, side, store) if out is None else Path(out)
    if path.suffix != ".beton":
        raise DataError(f"a packed file's name ends in .beton, got {path}")
    plan = Packed(
        dataset=file_name(name),
        split=split,
        size=side,
        store=store,
        class_names=tuple(tree.files),
        class_sizes=(),
        skipped=(),
        bytes=0,
        index_ranges=(),
        index_checksum="",
        crc32=np.zeros(0, np.uint32),
        root=str(folder.resolve()),
        versions=_versions(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _partial(path) as partial:
            processes = workers or usable_cores()
            refuse_without_disk(plan, tree, path, processes)
            packed = _written(plan, tree, partial, processes, on_bad_image)
            _publish(packed, partial, path)
    except OSError as cause:
        raise DataError(f"{path} cannot be written: {cause}") from cause
    log.info("packed %d images into %s", len(packed.crc32), path)
    return path


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """The temporary name, held by this process alone; whatever happens, nothing stays there."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise DataError(
                f"another process is packing {path}: wait for it, or name another --out"
            ) from cause
        held.truncate(0)  # of a run that was killed
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def _written(
    plan: Packed, tree: ImageTree, partial: Path, workers: int, on_bad_image: str
) -> Packed:
    """Write and read back the file; returns its description."""
    from .ffcv.verifying import verified
    from .ffcv.writing import EncodedImages, write_images

    label = f"packing {plan.dataset}"
    largest = largest_image(plan, tree)
    images = EncodedImages(tree, size=plan.size, store=plan.store, largest=largest)
    bad = write_images(images, partial, workers=workers, label=label)
    skipped: list[tuple[str, str]] = []
    if bad:
        skipped = [(os.path.relpath(images.path(row), plan.root), bad[row]) for row in bad]
        log.warning("%s", "\n".join(reason for _, reason in skipped))
        if on_bad_image == "stop":
            raise DataError(
                f"{len(bad)} of {len(images)} images are damaged and listed above, nothing was "
                "written: replace or remove them, or leave them out with --on-bad-image skip"
            )
        tree = _without(tree, {images.path(row) for row in bad})
        log.info("leaving out %d damaged images: starting again without them", len(bad))
        images = EncodedImages(tree, size=plan.size, store=plan.store, largest=largest)
        if write_images(images, partial, workers=workers, label=label):
            raise DataError(f"images in {plan.root} change while they are packed: pack again")
    ranges = verified(partial, images)
    return replace(
        plan,
        class_sizes=tuple(len(members) for members in tree.files.values()),
        skipped=tuple(skipped),
        bytes=partial.stat().st_size,
        index_ranges=ranges,
        index_checksum=index_checksum(partial, ranges),
        crc32=images.crc32,
    )


def _without(tree: ImageTree, bad: set[Path]) -> ImageTree:
    files = {
        name: ClassFiles(
            members.folder, [n for n in members.names if members.folder / n not in bad]
        )
        for name, members in tree.files.items()
    }
    empty = [name for name, members in files.items() if not members]
    if empty:
        raise DataError(f"every image of class '{empty[0]}' is damaged: replace some of them")
    return replace(tree, files=files)


def _publish(packed: Packed, partial: Path, path: Path) -> None:
    """Give file and sidecar their names; a kill in between leaves a file that does not open."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    sidecar(path).unlink(missing_ok=True)
    partial.replace(path)
    sync_folder(path.parent)
    packed.write(path)


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_MISTAKE, f"{self.prog}: {message}; see --help\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="m3d_fast.loaders.pack",
        description="Write a folder of images, class by class, to one file that FFCV reads.",
    )
    add = parser.add_argument
    add("--dataset", required=True, help="imagenet100, imagenet1k, folder, custom:FILE, ...")
    add("--data-root", required=True, metavar="DIR", help="the data set's folder")
    add("--split", default="train", help="train or test [train]")
    add("--size", type=int, metavar="PIXELS", help="side of the images [the data set's own]")
    add("--store", default="raw", help="raw, jpeg:QUALITY or original [raw]")
    add("--out", metavar="FILE", help="FILE.beton [DIR/m3d_fast/DATASET-SPLIT-SIZE-STORE.beton]")
    add("--workers", type=int, metavar="N", help="processes that decode [one per core]")
    add("--on-bad-image", default="stop", help="stop, naming all of them, or skip [stop]")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = _parser()
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr, force=True)
    # Ctrl-C too: a script's background jobs start with it ignored
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
        pack(given.pop("dataset"), given.pop("data_root"), **given)
    except DataError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return _MISTAKE
    except ModuleNotFoundError as missing:
        sys.stderr.write(
            f"{parser.prog}: packing needs the Python package {missing.name}: make setup\n"
        )
        return _MISTAKE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; nothing was written\n")
        return _INTERRUPTED
    return _DONE


if __name__ == "__main__":
    sys.exit(main())
