"""Sets as a folder of class folders of image files, as torchvision's ``ImageFolder`` reads them."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..common.errors import UserError
from ..common.files import write_json
from ..loaders.image_files.trees import class_folder_tree
from .content import METADATA_FILE, Content, read_metadata

_NUMBERED = re.compile(r"(\d{4})_(.+)", re.DOTALL)  # our folders: label and name


def to_picture(image: Tensor) -> Image.Image:
    """8 bits, grey or RGB, of an image ``(C, H, W)`` in [0, 1]."""
    pixels = (image * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.squeeze(-1).numpy())


def to_png(image: Tensor) -> bytes:
    """A PNG file of such an image."""
    file = io.BytesIO()
    to_picture(image).save(file, format="PNG")
    return file.getvalue()


def write_image_folder(content: Content, folder: Path) -> None:
    """Write ``<folder>/<label>_<class>/<number>.png``, 8 bits, and what else is known as JSON.

    Sorted, the names of the folders are in the order of the labels.
    """
    names = content.metadata["classes"]
    for number, (image, label) in enumerate(
        zip(content.images, content.labels.tolist(), strict=True)
    ):
        target = folder / f"{label:04d}_{safe_name(names[label])}" / f"{number:06d}.png"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(to_png(image))
    write_json(folder / METADATA_FILE, content.metadata)


def safe_name(name: str) -> str:
    """The name of a class as that of a folder."""
    return name.replace("/", "_")


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds folders."""
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def read_image_folder(folder: Path) -> Content:
    """Read a folder of class folders; uint8 ``(n, C, H, W)``, grey if all files are.

    Labels follow the folders sorted by name, or by number where all names are numbers: these are
    then the labels, and the classes have no names.

    Raises:
        UserError: if a class is empty, a file is damaged, or sizes differ.
    """
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    numeric = all(name.isdecimal() for name in names)
    names.sort(key=int if numeric else str)
    tree = class_folder_tree(folder, names)
    files = [file for name in names for file in tree.files[name]]
    counts = torch.tensor([len(tree.files[name]) for name in names])
    numbers = torch.tensor([int(name) for name in names]) if numeric else torch.arange(len(names))
    metadata = read_metadata(folder / METADATA_FILE)
    if not numeric and "classes" not in metadata:
        metadata["classes"] = class_names(names)
    images = stack_pictures(((str(file), file.read_bytes()) for file in files), str(folder))
    return Content(images, numbers.repeat_interleave(counts), metadata)


def class_names(folders: list[str]) -> list[str]:
    """Names of classes from those of sorted folders: without our numbers, where all have them."""
    found = [_NUMBERED.fullmatch(name) for name in folders]
    numbers = [int(match[1]) for match in found if match]
    if numbers != list(range(len(folders))):
        return folders
    return [match[2] for match in found if match]


def stack_pictures(files: Iterable[tuple[str, bytes]], subject: str) -> Tensor:
    """Decode image files, given with their names; uint8 ``(n, C, H, W)``, grey if all are.

    Raises:
        UserError: if a file is damaged or sizes differ.
    """
    pictures = [_decode(name, data) for name, data in files]
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        (w1, h1), (w2, h2) = sorted(sizes)[:2]
        raise UserError(
            f"{subject}: expected images of one size, got {w1} x {h1} and {w2} x {h2} pixels"
        )
    mode = "L" if all(picture.mode in ("L", "1") for picture in pictures) else "RGB"
    width, height = pictures[0].size
    data = bytearray(b"".join(picture.convert(mode).tobytes() for picture in pictures))
    pixels = torch.frombuffer(data, dtype=torch.uint8).view(len(pictures), height, width, -1)
    return pixels.permute(0, 3, 1, 2).contiguous()


def _decode(name: str, data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as file:
            file.load()
            return file.copy()
    # damaged files make Pillow raise nearly anything: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise UserError(f"{name}: expected an image, found a damaged file ({error})") from error
