"""The formats by name: which one a path is of, and how each is written and read."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.files import sync_folder
from .arrays import read_ddranking, read_npz, read_pt, write_ddranking, write_npz
from .beton import read_beton, write_beton
from .content import Content
from .image_folder import is_image_folder, read_image_folder, write_image_folder
from .parquet import find_parquet_files, read_hugging_face, write_hugging_face

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Format:
    """A form in which sets are exported.

    Attributes:
        write: writes a set to a path: a file, or an empty folder.
        suffix: of the file; None for a folder.
        exact: whether pixels stay float32, not rounded to 8 bits.
    """

    write: Callable[[Content, Path], None]
    suffix: str | None = None
    exact: bool = False


FORMATS = {
    "imagefolder": Format(write_image_folder),
    "npz": Format(write_npz, ".npz", exact=True),
    "beton": Format(write_beton, ".beton"),
    "hf": Format(write_hugging_face),
    "dd-ranking": Format(write_ddranking, exact=True),
}


def check_target(to: str, path: Path) -> None:
    """Raise UserError unless a set can be written there in this format, over nothing."""
    suffix = FORMATS[to].suffix
    if suffix is not None and path.suffix != suffix:
        raise UserError(f"out: expected a name that ends in {suffix} for {to}, got {path}")
    if os.path.lexists(path):
        raise UserError(f"out: {path} exists already; give another --out, or remove it")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"out: {path} cannot be made: {parent} is not a folder that is writable")


def write_content(content: Content, to: str, path: Path) -> None:
    """Write a set, complete or absent.

    Raises:
        UserError: if there is something already, or it cannot be written.
    """
    check_target(to, path)
    kind = FORMATS[to]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind.suffix is not None:
            kind.write(content, path)
            return
        part = path.with_name(f".{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir()
        try:
            kind.write(content, part)
            sync_folder(part)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"out: {path} cannot be written ({error.strerror or error})") from error


def is_set_folder(path: Path) -> bool:
    """Whether a folder holds a set in one of these forms."""
    return (path / "images.pt").exists() or bool(find_parquet_files(path)) or is_image_folder(path)


def is_foreign(path: Path) -> bool:
    """Whether a path holds a set in one of these forms, or in none that is known."""
    return path.is_dir() or path.suffix in (".npz", ".pt", ".pth", ".beton", ".parquet")


def read_content(path: Path, mean: Numbers | None = None, std: Numbers | None = None) -> Content:
    """Read a set of any format.

    Args:
        path: a file, or a folder.
        mean, std: per channel, of its data set; None where not known.

    Raises:
        UserError: if it is missing, damaged, or of no known format.
    """
    if path.is_file():
        readers = {
            ".npz": read_npz,
            ".pt": read_pt,
            ".pth": read_pt,
            ".beton": read_beton,
            ".parquet": read_hugging_face,
        }
        return readers[path.suffix](path)
    if not path.is_dir():
        raise UserError(f"{path}: expected a condensed set, found no such file or folder")
    if (path / "images.pt").exists():
        return read_ddranking(path, mean, std)
    if find_parquet_files(path):
        return read_hugging_face(path)
    if is_image_folder(path):
        return read_image_folder(path)
    raise UserError(
        f"{path}: expected a folder of class folders, of parquet files, or of images.pt and "
        f"labels.pt, found none of them"
    )
