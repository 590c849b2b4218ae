"""Is a packed file whole, and what is in it? The sidecar ``FILE.beton.json`` says."""

import base64
import hashlib
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...common.errors import DataError
from ...common.files import sync_folder
from .. import download
from ..subsets import file_name

FORMAT = "m3d_fast packed images, 1"
_PACK_AGAIN = "pack again with python -m m3d_fast.loaders.pack"


@dataclass(frozen=True, eq=False)
class Packed:
    """What is known of a packed file of one split. Row ``i`` of the file is image ``i``.

    Attributes:
        dataset: its name, such as "imagenet100".
        split: "train" or "test".
        size: side in pixels of the images once read.
        store: "raw" (pixels), "jpeg:Q" (the crop at quality Q) or "original" (files as they were;
            resized and cropped at reading).
        class_names: in label order.
        class_sizes: images per class; rows are grouped by class in label order.
        skipped: files left out as damaged, relative to ``root``, with the reason.
        bytes: length of the file.
        index_ranges: ``(start, end)`` of the parts of the file that are no pixels, in bytes.
        index_checksum: SHA-256 of those parts, hexadecimal.
        crc32: uint32 ``(N,)``, of the stored bytes of every image.
        root: the data set's folder, from which it was packed, absolute.
        versions: of the libraries that decoded and wrote them.
    """

    dataset: str
    split: str
    size: int
    store: str
    class_names: tuple[str, ...]
    class_sizes: tuple[int, ...]
    skipped: tuple[tuple[str, str], ...]
    bytes: int
    index_ranges: tuple[tuple[int, int], ...]
    index_checksum: str
    crc32: npt.NDArray[np.uint32]
    root: str
    versions: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Of everything that decides which pixels a row gives: the same for any copy or repack."""
        content = hashlib.sha256()
        known = [self.dataset, self.split, self.size, self.store, self.class_names]
        content.update(json.dumps([*known, self.class_sizes]).encode())
        content.update(self.crc32.astype("<u4").tobytes())
        return content.hexdigest()

    def write(self, path: Path) -> None:
        """Write the sidecar of the packed file ``path``, atomically and on disk when it returns."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["crc32"] = base64.b64encode(self.crc32.astype("<u4").tobytes()).decode()
        content = {"format": FORMAT, **content, "fingerprint": self.fingerprint}
        content["checksum"] = _checksum(content)
        target = sidecar(path)
        temporary = target.with_name(f".{target.name}.part")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)


def default_file(name: str, root: Path, split: str, size: int, store: str) -> Path:
    """Where a data set is packed when nothing else is said: within its folder, else in the cache.

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
    place = hashlib.sha256(str(root.expanduser().resolve()).encode()).hexdigest()[:8]
    return download.CACHE.expanduser() / "packed" / f"{stem}-{place}.beton"


def sidecar(path: Path) -> Path:
    """Where the description of a packed file lies."""
    return path.with_name(f"{path.name}.json")


def open_packed(path: Path, *, dataset: str | None = None, size: int | None = None) -> Packed:
    """Read the sidecar of a packed file and check that both are whole and belong together.

    Pixels are not read: their checksums are in ``crc32``.

    Args:
        path: the packed file.
        dataset: what it must hold; None for anything.
        size: side in pixels its images must have; None for any.

    Raises:
        DataError: if either file is missing, damaged or belongs to another, or holds something
            else than asked for.
    """
    packed = _read_sidecar(path)
    length = path.stat().st_size
    if length < packed.bytes:
        raise DataError(
            f"{path} is cut: {packed.bytes} bytes were written, {length} are there: {_PACK_AGAIN}"
        )
    if length > packed.bytes or index_checksum(path, packed.index_ranges) != packed.index_checksum:
        raise DataError(
            f"{path} is damaged or not the file that {sidecar(path).name} describes (its length "
            f"or index differs): put the right one there or {_PACK_AGAIN}"
        )
    if dataset is not None and packed.dataset != dataset:
        raise DataError(f"{path} holds {packed.dataset}, not {dataset}: name the file of {dataset}")
    if size is not None and packed.size != size:
        raise DataError(
            f"{path} holds images of {packed.size} px, {size} px were asked for: take --size "
            f"{packed.size} or pack again with --size {size}"
        )
    return packed


def index_checksum(path: Path, ranges: tuple[tuple[int, int], ...]) -> str:
    """SHA-256 of parts of a file, hexadecimal."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        for start, end in ranges:
            file.seek(start)
            content.update(file.read(end - start))
    return content.hexdigest()


def _read_sidecar(path: Path) -> Packed:
    if not path.is_file():
        raise DataError(f"there is no packed file {path}: name one that is or {_PACK_AGAIN}")
    description = sidecar(path)
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
    if content.pop("checksum", None) != _checksum(content):
        raise DataError(f"{description} is damaged (wrong checksum): {_PACK_AGAIN}")
    return _packed(content)


def _packed(content: dict[str, Any]) -> Packed:
    known = {field.name: content[field.name] for field in fields(Packed)}
    for name in ("class_names", "class_sizes"):
        known[name] = tuple(known[name])
    for name in ("skipped", "index_ranges"):
        known[name] = tuple(tuple(pair) for pair in known[name])
    crc32 = np.frombuffer(base64.b64decode(known["crc32"]), dtype="<u4").astype(np.uint32)
    return Packed(**(known | {"crc32": crc32}))


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
