"""A packed file and its sidecar ``FILE.beton.json``, which says what it holds."""

import base64
import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...common.errors import DataError
from ...common.files import replace_atomically, sync_folder
from .. import download
from ..subsets import file_name

FORMAT = "m3d_fast packed images, 1"
_PACK_AGAIN = "pack again with python -m m3d_fast.loaders.pack"


@dataclass(frozen=True, eq=False)
class PackingRequest:
    """What a packed file is to hold: one split of a data set, at one size.

    Attributes:
        dataset: its name, such as "imagenet100".
        split: "train" or "test".
        size: side in pixels of the images once read.
        store: "raw" (pixels), "jpeg:Q" (the crop at quality Q) or "original" (the files' own
            bytes; resized and cropped when read).
        class_names: in label order.
    """

    dataset: str
    split: str
    size: int
    store: str
    class_names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Sidecar(PackingRequest):
    """Full description of a packed file. Row ``i`` of the file is image ``i``.

    Attributes:
        class_sizes: images per class; rows are grouped by class in label order.
        skipped: files left out as damaged, relative to ``root``, with the reason.
        bytes: length of the file.
        index_ranges: ``(start, end)`` of the parts of the file that are no pixels, in bytes.
        index_checksum: SHA-256 of those parts, hexadecimal.
        crc32: uint32 ``(N,)``, of the stored bytes of every image.
        root: the data set's folder, from which it was packed, absolute.
        versions: of the libraries that decoded and wrote the images.
    """

    class_sizes: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    bytes: int
    index_ranges: tuple[tuple[int, int], ...]
    index_checksum: str
    crc32: npt.NDArray[np.uint32]
    root: str
    versions: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the sidecar of the packed file ``path``, atomically and on disk when it returns."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["crc32"] = base64.b64encode(self.crc32.astype("<u4").tobytes()).decode()
        content = {"format": FORMAT, **content}
        content["checksum"] = _compute_checksum(content)
        target = sidecar_path(path)
        with replace_atomically(target) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        sync_folder(target.parent)


class PackedFile(NamedTuple):
    """A packed file that was found complete.

    Attributes:
        path: of the ``.beton`` file.
        identity: of the file when its sidecar was read, see ``file_identity``.
        sidecar: its description.
    """

    path: Path
    identity: tuple[int, ...]
    sidecar: Sidecar


def default_file(name: str, root: Path, split: str, size: int, store: str) -> Path:
    """Default path of a packed file: within the data set's folder, else in the cache.

    Args:
        name: of the data set.
        root: its folder.
        split: "train" or "test".
        size: side in pixels.
        store: "raw", "jpeg:Q" or "original".
    """
    stem = f"{file_name(name)}-{split}-{size}-{store.replace(':', '')}"
    file = root.expanduser() / "m3d_fast" / f"{stem}.beton"
    folder = file.parent if file.parent.is_dir() else root.expanduser()
    if file.is_file() or os.access(folder, os.W_OK):
        return file
    # several folders may hold a data set of this name
    suffix = hashlib.sha256(str(root.expanduser().resolve()).encode()).hexdigest()[:8]
    return download.CACHE.expanduser() / "packed" / f"{stem}-{suffix}.beton"


def sidecar_path(path: Path) -> Path:
    """Path of the sidecar of the packed file ``path``."""
    return path.with_name(f"{path.name}.json")


def file_identity(path: Path) -> tuple[int, ...]:
    """Device, inode, size and time stamp of a file; empty where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_packed(path: Path) -> PackedFile:
    """Read the sidecar of a packed file and check that both are complete and belong together.

    Pixels are not read: their checksums are in ``crc32``.

    Raises:
        DataError: if either file is missing, damaged or belongs to another.
    """
    identity = file_identity(path)
    sidecar = _read_sidecar(path)
    length = path.stat().st_size
    if length < sidecar.bytes:
        raise DataError(
            f"{path} is cut: {sidecar.bytes} bytes were written, {length} are there: {_PACK_AGAIN}"
        )
    if (
        length > sidecar.bytes
        or index_checksum(path, sidecar.index_ranges) != sidecar.index_checksum
    ):
        raise DataError(
            f"{path} is damaged or not the file that {sidecar_path(path).name} describes (its "
            f"length or index differs): put the right one there or {_PACK_AGAIN}"
        )
    return PackedFile(path, identity, sidecar)


def index_checksum(path: Path, ranges: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of parts of a file, hexadecimal."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for start, end in ranges:
            file.seek(start)
            content.update(file.read(end - start))
    return content.hexdigest()


def _read_sidecar(path: Path) -> Sidecar:
    if not path.is_file():
        raise DataError(f"there is no packed file {path}: name another or {_PACK_AGAIN}")
    description = sidecar_path(path)
    if not description.is_file():
        raise DataError(
            f"{description}, which describes {path.name}, is missing: packing was interrupted or "
            f"only one of the two files copied; {_PACK_AGAIN}"
        )
    try:
        content = json.loads(description.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as cause:
        raise DataError(f"{description} is damaged ({cause}): {_PACK_AGAIN}") from cause
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{description} must be '{FORMAT}', it is '{found}': {_PACK_AGAIN}")
    if content.pop("checksum", None) != _compute_checksum(content):
        raise DataError(f"{description} is damaged (wrong checksum): {_PACK_AGAIN}")
    return _parse_sidecar(content)


def _parse_sidecar(content: dict[str, Any]) -> Sidecar:
    # keys of other versions are ignored
    known = {field.name: content[field.name] for field in fields(Sidecar)}
    for name in ("class_names", "class_sizes"):
        known[name] = tuple(known[name])
    for name in ("skipped", "index_ranges"):
        known[name] = tuple(tuple(pair) for pair in known[name])
    crc32 = np.frombuffer(base64.b64decode(known["crc32"]), dtype="<u4").astype(np.uint32)
    return Sidecar(**(known | {"crc32": crc32}))


def _compute_checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
