"""Packing a folder of images into one file: ``python -m m3d_fast.loaders.pack``."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..common.checks import check_name
from ..common.commands import Parser, run_command
from ..common.errors import DataError, UserError
from ..common.files import lock_file, sync_folder
from ..common.hardware import usable_cores
from .catalog import image_side
from .ffcv.disk_space import check_disk_space, largest_image
from .ffcv.packed_file import PackingRequest, Sidecar, default_file, index_checksum, sidecar_path
from .ffcv.storing import parse_quality
from .image_files.layouts import image_tree
from .image_files.trees import ClassFiles, ImageTree
from .splits import FILE_SPLITS
from .subsets import file_name

log = logging.getLogger("m3d_fast")

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

    Every image is decoded completely. The file appears under its name, with its sidecar, only
    after all of it was written and read back. FFCV's writer forks: call this in a process in which
    no FFCV loader has run, best from the command line.

    Args:
        name: a data set of image files, such as "imagenet100".
        root: its folder.
        split: "train" or "test".
        size: side of the images in pixels; None for the data set's own.
        store: "raw" (the pixels of ``decode_image``), "jpeg:Q" (the same at quality Q) or
            "original" (the files' own bytes, cropped when they are read).
        out: the file, ending in ``.beton``; None for ``default_file``.
        workers: processes that decode; None for one per core.
        on_bad_image: "stop", naming all damaged images and writing nothing, or "skip".

    Returns:
        The packed file.

    Raises:
        DataError: if an argument is invalid, images are damaged, the disk is too small, or a
            process fails.
    """
    side = image_side(name, size)
    check_name("split", split, FILE_SPLITS, DataError)
    check_name("on_bad_image", on_bad_image, ("stop", "skip"), DataError)
    if workers is not None and workers < 1:
        raise DataError(f"at least one worker must decode, got {workers}")
    parse_quality(store)
    folder = Path(root).expanduser()
    tree = image_tree(name, folder, split)
    path = default_file(name, folder, split, side, store) if out is None else Path(out)
    if path.suffix != ".beton":
        raise DataError(f"a packed file's name ends in .beton, got {path}")
    request = PackingRequest(file_name(name), split, side, store, tuple(tree.files))
    processes = workers or usable_cores()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock_partial(path) as partial:
            check_disk_space(request, tree, path, processes)
            sidecar = _write(request, tree, folder.resolve(), partial, processes, on_bad_image)
            _publish(sidecar, partial, path)
    except OSError as cause:
        raise DataError(f"{path} cannot be written: {cause}") from cause
    log.info("packed %d images into %s", len(sidecar.crc32), path)
    return path


@contextmanager
def _lock_partial(path: Path) -> Iterator[Path]:
    """The temporary file, empty and locked by this process; removed in the end."""
    partial = path.with_name(f".{path.name}.part")
    with partial.open("ab") as file:
        if not lock_file(file.fileno()):
            raise DataError(
                f"another process is packing {path}: wait for it, or name another --out"
            )
        file.truncate(0)  # of a run that was killed
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)


def _write(
    request: PackingRequest,
    tree: ImageTree,
    root: Path,
    partial: Path,
    workers: int,
    on_bad_image: str,
) -> Sidecar:
    """Write the file and read it back; returns its description."""
    from .ffcv.verifying import verify_packed
    from .ffcv.writing import EncodedImages, write_images

    label = f"packing {request.dataset}"
    largest = largest_image(request, tree)
    images = EncodedImages(tree, size=request.size, store=request.store, largest=largest)
    bad = write_images(images, partial, workers=workers, label=label)
    skipped = tuple((os.path.relpath(images.path(row), root), bad[row]) for row in bad)
    if bad:
        log.warning("%s", "\n".join(bad.values()))
        if on_bad_image == "stop":
            raise DataError(
                f"{len(bad)} of {len(images)} images are damaged and listed above, nothing was "
                "written: replace or remove them, or leave them out with --on-bad-image skip"
            )
        tree = _remove_files(tree, {images.path(row) for row in bad})
        log.info("leaving out %d damaged images: starting again without them", len(bad))
        images = EncodedImages(tree, size=request.size, store=request.store, largest=largest)
        if write_images(images, partial, workers=workers, label=label):
            raise DataError(f"images in {root} change while they are packed: pack again")
    ranges = verify_packed(partial, images)
    return Sidecar(
        **vars(request),
        class_sizes=tuple(len(members) for members in tree.files.values()),
        skipped=skipped,
        bytes=partial.stat().st_size,
        index_ranges=ranges,
        index_checksum=index_checksum(partial, ranges),
        crc32=images.crc32,
        root=str(root),
        versions=_find_versions(),
    )


def _remove_files(tree: ImageTree, bad: set[Path]) -> ImageTree:
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


def _publish(sidecar: Sidecar, partial: Path, path: Path) -> None:
    """Give file and sidecar their names; a kill in between leaves a file that does not open."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    sidecar_path(path).unlink(missing_ok=True)
    partial.replace(path)
    sync_folder(path.parent)
    sidecar.write(path)


def _find_versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found


def _build_parser() -> Parser:
    parser = Parser(
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


def _pack_parsed(namespace: argparse.Namespace) -> None:
    given: dict[str, Any] = vars(namespace)
    # Ctrl-C too: a script's background jobs start with it ignored
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    os.environ.setdefault("NUMBA_THREADING_LAYER", "omp")
    try:
        pack(given.pop("dataset"), given.pop("data_root"), **given)
    except ModuleNotFoundError as missing:
        raise UserError(f"packing needs the Python package {missing.name}: make setup") from missing
    except KeyboardInterrupt as interruption:
        raise KeyboardInterrupt("interrupted; nothing was written") from interruption


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    return run_command(_build_parser(), _pack_parsed, arguments)


if __name__ == "__main__":
    sys.exit(main())
