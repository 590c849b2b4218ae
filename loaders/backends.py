"""The back end that serves a set of image files, and packing before it is opened."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..common.commands import DONE, INTERRUPTED
from ..common.errors import DataError
from ..common.files import lock_file
from .ffcv.packed_file import PackedFile, default_file, open_packed
from .image_files.layouts import image_tree
from .image_files.trees import ImageTree
from .image_files.worker_images import FolderImages
from .protocol import BackEnd
from .registry import dataset_info
from .subsets import file_name, subset_classes

log = logging.getLogger("m3d_fast")

LOADERS = ("auto", "ffcv", "folder")

# forms in which packed files hold images, in the order of preference; the first is what we pack
_STORES = ("raw", "jpeg:95", "original")

# fewer images are decoded by the reading process, in at most 3 s per pass: packing takes as
# long, and starting worker processes longer
_SMALL = 1000

_PATIENCE = 10  # seconds for packing to clean up after Ctrl-C


@dataclass(frozen=True)
class NeedsPacking:
    """Training images to be packed before they are read.

    Attributes:
        name: of the data set.
        root: its folder.
        size: side of the images in pixels.
    """

    name: str
    root: Path
    size: int


def open_image_files(
    name: str,
    root: Path | None,
    split: str,
    size: int,
    *,
    loader: str,
    workers: int | None,
    pack: bool = True,
) -> BackEnd:
    """Open a packed file, packing it first where that pays, or the image files themselves.

    Args:
        name: of the data set.
        root: its folder, or a packed ``.beton`` file.
        split: "train" or "test".
        size: side of the images in pixels.
        loader: "ffcv", "folder" or "auto".
        workers: threads or processes that decode; None for one per core.
        pack: whether packing may pay: all images will be read repeatedly.

    Raises:
        DataError: if the data are missing or damaged, the packed file is of other data, or
            packing failed.
    """
    source = resolve_source(name, root, split, size, loader=loader, pack=pack)
    if isinstance(source, NeedsPacking):
        source = pack_dataset(source)
    return open_back_end(source, size, workers)


def resolve_source(
    name: str, root: Path | None, split: str, size: int, *, loader: str, pack: bool = True
) -> PackedFile | ImageTree | NeedsPacking:
    """Decide what images are read from; arguments and errors as ``open_image_files``."""
    packed = tree = None
    given = root is not None and root.is_file()
    if root is not None and given:
        packed, root = _resolve_file(name, root, split, size)
        if packed is not None and loader == "folder":
            raise DataError(
                f"--loader folder decodes image files, {packed.path} is packed: leave it out"
            )
    elif root is not None and loader != "folder":
        packed = _find_packed(name, root, split, size)
    if packed is None:
        tree = image_tree(name, root, split)
        packing_pays = split == "train" and (loader == "ffcv" or (pack and not _is_small(tree)))
        if loader == "folder" or not packing_pays:
            return tree
    problem = _find_ffcv_problem()
    if not problem:
        assert root is not None
        return packed or NeedsPacking(name, root, size)
    if given or loader == "ffcv":
        source = packed.path if packed else root
        raise DataError(f"{source} is to be read through FFCV, but {problem}")
    log.warning("%s: image files are decoded by worker processes, which is slower", problem)
    return tree or image_tree(name, root, split)


def pack_dataset(request: NeedsPacking) -> PackedFile:
    """Pack training images in a separate process: FFCV's writer needs a fresh one.

    Raises:
        DataError: if packing fails.
        KeyboardInterrupt: if it is interrupted.
    """
    name, root, size = request.name, request.root, request.size
    file = default_file(name, root, "train", size, _STORES[0])
    arguments = ["--dataset", name, "--data-root", str(root), "--size", str(size)]
    arguments += ["--store", _STORES[0], "--out", str(file)]
    with _lock_packing(file) as lock:
        if file.is_file():  # another process has packed it meanwhile
            return _open_checked(file, name, "train", size)
        log.info(
            "%s is not packed yet: packing it into %s first, once (--loader folder decodes the "
            "image files instead)",
            name,
            file,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "m3d_fast.loaders.pack", *arguments],
            stdout=sys.stderr.fileno(),
            # packing that outlives this process still keeps others from packing the same file
            pass_fds=[lock],
            # whichever rank packs, its messages are printed
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RANK": "0"},
        )
        status = _wait_for(process)
    if status == INTERRUPTED:
        raise KeyboardInterrupt("interrupted while packing; nothing of it was kept")
    if status != DONE:
        raise DataError(
            f"packing {name} failed (status {status}, its message is above): correct that, or "
            "decode the image files with --loader folder"
        )
    return _open_checked(file, name, "train", size)


def open_back_end(source: PackedFile | ImageTree, size: int, workers: int | None) -> BackEnd:
    """Open a packed file or image files.

    Args:
        source: of ``resolve_source`` or ``pack_dataset``.
        size: side of the images in pixels.
        workers: threads or processes that decode; None for one per core.
    """
    if isinstance(source, ImageTree):
        in_process = workers is None and _is_small(source)
        return FolderImages(source, size, workers=0 if in_process else workers)
    from .ffcv.images import FfcvImages

    return FfcvImages(source, workers=workers)


def _is_small(tree: ImageTree) -> bool:
    return sum(map(len, tree.files.values())) < _SMALL


def _find_ffcv_problem() -> str:
    """Why FFCV cannot be used; empty where it can."""
    from .ffcv.images import load_ffcv

    try:
        load_ffcv()
    # OSError: one of the libraries it is linked to is missing
    except (ImportError, OSError) as cause:
        return f"ffcv is not installed or broken ({cause}; make setup installs it)"
    return ""


def _find_packed(name: str, root: Path, split: str, size: int) -> PackedFile | None:
    """The file packed from ``root``, in the preferred form."""
    files = (default_file(name, root, split, size, store) for store in _STORES)
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else _open_checked(file, name, split, size)


def _resolve_file(name: str, file: Path, split: str, size: int) -> tuple[PackedFile | None, Path]:
    """The packed file of this split that belongs to ``file``, and the folder it came from."""
    packed = _open_checked(file, name, None, size)
    sidecar, root = packed.sidecar, Path(packed.sidecar.root)
    if sidecar.split == split:
        return packed, root
    for store in dict.fromkeys((sidecar.store, *_STORES)):
        other = default_file(name, root, split, size, store)
        for sibling in (file.with_name(other.name), other):
            if sibling.is_file():
                return _open_checked(sibling, name, split, size), root
    if not root.is_dir():
        raise DataError(
            f"{file} holds the {sidecar.split} split, and the folder {root} it was packed from "
            f"is gone: pack the {split} split beside it, or pass --data-root with the folder"
        )
    return None, root


def _open_checked(file: Path, name: str, split: str | None, size: int) -> PackedFile:
    """Open a packed file; DataError if it holds other data than requested."""
    packed = open_packed(file)
    sidecar, dataset = packed.sidecar, file_name(name)
    if sidecar.dataset != dataset:
        raise DataError(
            f"{file} holds {sidecar.dataset}, not {dataset}: name the file of {dataset}"
        )
    if sidecar.size != size:
        raise DataError(
            f"{file} holds images of {sidecar.size} px, {size} px were requested: take --size "
            f"{sidecar.size} or pack again with --size {size}"
        )
    if split is not None and sidecar.split != split:
        raise DataError(f"{file} holds the {sidecar.split} split, not {split}: name the other file")
    if dataset_info(name).kind == "imagenet" and sidecar.class_names != subset_classes(name):
        raise DataError(
            f"{file} holds {sidecar.dataset} of {len(sidecar.class_names)} classes, which are not "
            f"those of {name}, or in another order: delete it to pack again"
        )
    return packed


def _wait_for(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C at a terminal reached the other process too: it is cleaning up
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise


@contextmanager
def _lock_packing(file: Path) -> Iterator[int]:
    """Hold the lock beside ``file``, so that of several processes (torchrun) one packs."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file.with_name(f".{file.name}.lock"), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as cause:
        raise DataError(
            f"{file} cannot be written ({cause}): pack elsewhere with python -m "
            "m3d_fast.loaders.pack --out FILE and pass that file as --data-root"
        ) from cause
    try:
        if not lock_file(descriptor):
            log.info("another process is packing %s: waiting for it", file)
            lock_file(descriptor, wait=True)
        yield descriptor
    finally:
        os.close(descriptor)
