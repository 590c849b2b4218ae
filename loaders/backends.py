"""Which back end serves a set of image files, and is it packed first?"""

import fcntl
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import DataError
from .ffcv.packed_file import Packed, default_file, open_packed
from .image_files.layouts import image_tree
from .image_files.trees import ImageTree
from .image_files.worker_images import FolderImages
from .protocol import BackEnd
from .registry import dataset_info
from .subsets import file_name, subset_classes

log = logging.getLogger("m3d_fast")

LOADERS = ("auto", "ffcv", "folder")

# what packed files hold, in the order of preference; the first is packed where there is none
_STORES = ("raw", "jpeg:95", "original")

# below this, files are decoded by the reader itself, in at most 3 s per pass: packing takes as
# long, and starting worker processes longer
_SMALL = 1000

_INTERRUPTED = 130  # exit status of our commands
_PATIENCE = 10  # seconds for packing to tidy up after Ctrl-C


def choose_back_end(
    name: str, root: Path | None, split: str, size: int, *, loader: str, workers: int | None
) -> BackEnd:
    """Open a packed file, packing it first where that pays, or the image files themselves.

    Args:
        name: of the data set.
        root: its folder, or a packed ``.beton`` file.
        split: "train" or "test".
        size: side of the images in pixels.
        loader: "ffcv", "folder" or "auto".
        workers: threads or processes that decode; None for one per core.

    Raises:
        DataError: if the data are missing or damaged, the packed file is of other data, or
            packing failed.
    """
    given = root is not None and root.is_file()
    packed = None
    if root is not None and given:
        packed, root = _given(name, root, split, size)
    elif root is not None and loader != "folder":
        packed = _found(name, root, split, size)
    if packed is None:
        tree = image_tree(name, root, split)
        pays = split == "train" and (loader == "ffcv" or not _small(tree))
        if loader == "folder" or not pays:
            return _image_files(tree, size, workers)
    if loader == "folder":
        raise DataError(f"--loader folder decodes image files, {packed} is packed: leave it out")
    problem = _ffcv_problem()
    if not problem:
        assert root is not None
        return _ffcv_images(packed or _pack(name, root, size), workers)
    if given or loader == "ffcv":
        raise DataError(f"{packed or root} is to be read through FFCV, but {problem}")
    log.warning("%s: image files are decoded by worker processes, which is slower", problem)
    return _image_files(image_tree(name, root, split), size, workers)


def _image_files(tree: ImageTree, size: int, workers: int | None) -> FolderImages:
    return FolderImages(tree, size, workers=0 if workers is None and _small(tree) else workers)


def _small(tree: ImageTree) -> bool:
    return sum(map(len, tree.files.values())) < _SMALL


def _ffcv_problem() -> str:
    """Why FFCV cannot be used; empty where it can."""
    from .ffcv.images import load_ffcv

    try:
        load_ffcv()
    # OSError: one of the libraries it is linked to is missing
    except (ImportError, OSError) as cause:
        return f"ffcv is not installed or broken ({cause}; make setup installs it)"
    return ""


def _ffcv_images(packed: Path, workers: int | None) -> BackEnd:
    from .ffcv.images import FfcvImages

    return FfcvImages(packed, workers=workers)


def _found(name: str, root: Path, split: str, size: int) -> Path | None:
    """The file packed from ``root``, if there is one."""
    files = (default_file(name, root, split, size, store) for store in _STORES)
    file = next((file for file in files if file.is_file()), None)
    if file is not None:
        _open(file, name, split, size)
    return file


def _given(name: str, file: Path, split: str, size: int) -> tuple[Path | None, Path]:
    """The packed file of this split that belongs to ``file``, and the folder it came from."""
    packed = _open(file, name, None, size)
    root = Path(packed.root)
    if packed.split == split:
        return file, root
    for store in dict.fromkeys((packed.store, *_STORES)):
        other = default_file(name, root, split, size, store)
        for sibling in (file.with_name(other.name), other):
            if sibling.is_file():
                _open(sibling, name, split, size)
                return sibling, root
    if not root.is_dir():
        raise DataError(
            f"{file} holds the {packed.split} split, and the folder {root} it was packed from "
            f"is gone: pack the {split} split beside it, or pass --data-root with the folder"
        )
    return None, root


def _open(file: Path, name: str, split: str | None, size: int) -> Packed:
    """Read the sidecar of a packed file; refuse one of other data than asked for."""
    packed = open_packed(file, dataset=file_name(name), size=size)
    if split is not None and packed.split != split:
        raise DataError(f"{file} holds the {packed.split} split, not {split}: name the other file")
    if dataset_info(name).kind == "imagenet" and packed.class_names != subset_classes(name):
        raise DataError(
            f"{file} holds {packed.dataset} of {len(packed.class_names)} classes, which are not "
            f"those of {name}, or in another order: delete it to pack again"
        )
    return packed


def _pack(name: str, root: Path, size: int) -> Path:
    """Pack the training images in a process of its own, FFCV's writer needs it fresh."""
    file = default_file(name, root, "train", size, _STORES[0])
    arguments = ["--dataset", name, "--data-root", str(root), "--size", str(size)]
    arguments += ["--store", _STORES[0], "--out", str(file)]
    with _alone(file) as lock:
        if file.is_file():  # the process that was waited for has packed it
            _open(file, name, "train", size)
            return file
        log.info(
            "%s is not packed yet: packing it into %s first, once (--loader folder decodes the "
            "image files instead)",
            name,
            file,
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "m3d_fast.loaders.pack", *arguments],
            stdout=sys.stderr.fileno(),
            # packing that outlives this process still keeps others from packing beside it
            pass_fds=[lock],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        status = _waited_for(process)
    if status == _INTERRUPTED:
        raise KeyboardInterrupt("interrupted while packing; what was packed is gone")
    if status != 0:
        raise DataError(
            f"packing {name} failed (status {status}, its message is above): mend that, or decode "
            "the image files as they are with --loader folder"
        )
    return file


def _waited_for(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C at a terminal reached the other process too: it is tidying up
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise


@contextmanager
def _alone(file: Path) -> Iterator[int]:
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
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is packing %s: waiting for it", file)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
