"""The condensed set: its pixels, their decoding into training images, its file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .basis import Basis
from .common.checks import check_name
from .common.errors import UserError
from .common.tensors import read_tensors, write_tensors
from .formats.content import Content, check_counts, match_channels, to_unit_range
from .formats.image_folder import safe_name
from .formats.registry import FORMATS, is_foreign, read_content, write_content
from .loaders import dataset_info

FORMAT = "m3d_fast synthetic set"
SET_FILE = "synthetic.safetensors"  # of a run folder
NAMES = {"classes", "factor", "mean", "std", "ipc"}  # of a file's metadata, beside its origin
MIN_TILE = 4  # pixels


def check_factor(factor: int, size: int) -> None:
    """Raise UserError unless ``factor`` cuts ``size`` pixels into tiles of at least 4 px."""
    if factor < 1:
        raise UserError(f"factor: expected a whole number >= 1, got {factor}")
    if size // factor < MIN_TILE:
        raise UserError(
            f"factor {factor} cuts {size} px into tiles of {size // factor} px; expected tiles of "
            f"at least {MIN_TILE} px, so a factor of at most {size // MIN_TILE}"
        )


def tile_edges(side: int, factor: int) -> list[tuple[int, int]]:
    """Start and end of each tile along one side; sizes differ by one pixel (75, 75, 74)."""
    small, remainder = divmod(side, factor)
    sizes = [small + (tile < remainder) for tile in range(factor)]
    starts = [sum(sizes[:tile]) for tile in range(factor)]
    return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def decode(pixels: Tensor, factor: int) -> Tensor:
    """Cut every image into ``factor**2`` tiles, each bilinearly up-sampled to the full size.

    This is the multi-formation of IDC (arXiv 2205.14959); it is differentiable.

    Args:
        pixels: ``(..., n, C, H, W)`` float.
        factor: tiles per side.

    Returns:
        ``(..., n * factor**2, C, H, W)``; the tiles of an image are in row-major order.
    """
    if factor == 1:
        return pixels
    *lead, count, channels, height, width = pixels.shape
    flat = pixels.reshape(-1, channels, height, width)
    tiles = [
        F.interpolate(flat[:, :, top:bottom, left:right], (height, width), mode="bilinear")
        for top, bottom in tile_edges(height, factor)
        for left, right in tile_edges(width, factor)
    ]
    return torch.stack(tiles, 1).view(*lead, count * factor**2, channels, height, width)


class StoredImages:
    """Images kept encoded, as tiles or bytes, and decoded when they are indexed.

    Args:
        pixels: ``(n, C, H, W)``, float in [0, 1] or uint8.
        factor: tiles per side of every image.
    """

    def __init__(self, pixels: Tensor, factor: int = 1) -> None:
        self._pixels, self._factor = pixels, factor

    def __len__(self) -> int:
        return len(self._pixels) * self._factor**2

    def __getitem__(self, indices: Tensor) -> Tensor:
        """``decode(pixels, factor)[indices]``, float in [0, 1]; ``indices`` int64 ``(m,)``."""
        tiles = self._factor**2
        chosen = self._pixels[indices // tiles]
        images = chosen if chosen.is_floating_point() else chosen.float() / 255
        if tiles == 1:
            return images
        # every tile of the chosen images, then one each: without waiting for the device
        decoded = decode(images, self._factor).unflatten(0, (len(images), tiles))
        return decoded[torch.arange(len(images), device=indices.device), indices % tiles]

    def decode(self) -> Tensor:
        """All images, float in [0, 1], ``(n, C, H, W)``."""
        pixels = self._pixels if self._pixels.is_floating_point() else self._pixels.float() / 255
        return decode(pixels, self._factor)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of :meth:`decode`."""
        return self._pixels.numel() * self._factor**2 * 4


def label_images(pixels: Tensor, factor: int = 1) -> tuple[StoredImages, Tensor]:
    """Images ``(C, n, channels, H, W)``, float or uint8, as a flat training set with labels."""
    classes, count = pixels.shape[:2]
    labels = torch.arange(classes, device=pixels.device).repeat_interleave(count * factor**2)
    return StoredImages(pixels.flatten(0, 1), factor), labels


def encode(images: Tensor, factor: int) -> Tensor:
    """Shrink groups of ``factor**2`` images, by averaging, into the tiles of one image.

    This is the initialisation "mix".

    Args:
        images: ``(..., n * factor**2, C, H, W)`` float.
        factor: tiles per side.

    Returns:
        ``(..., n, C, H, W)``.
    """
    *lead, count, channels, height, width = images.shape
    grouped = images.reshape(-1, factor**2, channels, height, width)
    pixels = torch.empty_like(grouped[:, 0])
    corners = product(tile_edges(height, factor), tile_edges(width, factor))
    for tile, ((top, bottom), (left, right)) in enumerate(corners):
        pixels[:, :, top:bottom, left:right] = F.interpolate(
            grouped[:, tile], (bottom - top, right - left), mode="area"
        )
    return pixels.view(*lead, count // factor**2, channels, height, width)


class StoredSet(NamedTuple):
    """A condensed set's own file, as it is stored.

    Attributes:
        images: ``(n, C, H, W)`` float32 in [0, 1]; of a basis the numbers that it decodes.
        labels: int64 ``(n,)``.
        metadata: ``NAMES``, and the origin of the set.
        basis: what decodes the images; None where tiles do.
    """

    images: Tensor
    labels: Tensor
    metadata: dict[str, Any]
    basis: Basis | None


def read_stored(path: Path) -> StoredSet:
    """Read a file that :meth:`SyntheticSet.save` or a run wrote.

    Raises:
        UserError: if it is missing, damaged or of another format.
    """
    tensors, metadata = read_tensors(path, FORMAT)
    missing = sorted({"images", "labels", *NAMES} - tensors.keys() - metadata.keys())
    if missing:
        raise UserError(f"{path}: expected a {FORMAT}, found one without {', '.join(missing)}")
    images, labels = tensors["images"], tensors["labels"]
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: expected images (n, C, H, W) and labels (n,), got "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    classes = len(metadata["classes"])
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"{path}: expected labels from 0 to {classes - 1}, got "
            f"{int(labels.min())} to {int(labels.max())}"
        )
    known = metadata.get("basis")
    basis = None if known is None else Basis(**known | {"shape": tuple(known["shape"])})
    return StoredSet(images, labels, metadata, basis)


@dataclass(frozen=True)
class SyntheticSet:
    """A condensed data set.

    Args:
        images: ``(num_classes * ipc, C, H, W)`` float32 in [0, 1], sorted by class.
        labels: ``(num_classes * ipc,)`` int64.
        class_names: one name per class.
        factor: tiles per side of every image.
        mean, std: per channel, for the normalisation before a network.
        info: origin of the set: dataset, method, iterations, seed, version.
        named: whether the classes have names; else ``class_names`` are their numbers.
        stored_ipc: images per class whose numbers the set takes; those of a basis are decoded as
            they are read, and ``factor`` is then 1. None: as many as there are.
    """

    images: Tensor
    labels: Tensor
    class_names: Sequence[str]
    factor: int
    mean: Sequence[float]
    std: Sequence[float]
    info: dict[str, Any] = field(default_factory=dict)
    named: bool = True
    stored_ipc: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def ipc(self) -> int:
        """Images per class, before tiles are decoded."""
        return len(self.images) // self.num_classes

    @property
    def stored_per_class(self) -> int:
        """Images per class whose numbers the set takes."""
        return self.ipc if self.stored_ipc is None else self.stored_ipc

    @property
    def stored_bytes(self) -> int:
        """Bytes of the images as stored, without labels."""
        return self.num_classes * self.stored_per_class * self.images[0].numel() * 4

    def check_classes(self, real: Sequence[str], subject: str) -> None:
        """Raise UserError, about ``subject``, unless the ``real`` classes are those of the set."""
        condensed = tuple(self.class_names)
        if tuple(real) != condensed:
            raise UserError(
                f"{subject} has {len(condensed)} classes ({', '.join(condensed[:3])}, ..); "
                f"the data {len(real)} ({', '.join(real[:3])}, ..); "
                f"give the --data-root the set was condensed from"
            )

    def with_classes(self, real: Sequence[str], subject: str) -> "SyntheticSet":
        """This set with the ``real`` classes in their order.

        Classes without names take the real ones; others are put in order.

        Raises:
            UserError: about ``subject``, if the set has other classes.
        """
        names, wanted = tuple(self.class_names), tuple(real)
        if names == wanted:
            return self
        if not self.named and len(names) == len(wanted):
            return replace(self, class_names=wanted, named=True)
        order = {safe_name(name): label for label, name in enumerate(names)}
        if len(names) != len(wanted) or order.keys() != set(map(safe_name, wanted)):
            self.check_classes(wanted, subject)
        chosen = torch.tensor([order[safe_name(name)] for name in wanted])
        images = self.images.unflatten(0, (len(names), self.ipc))[chosen].flatten(0, 1)
        return replace(self, images=images, class_names=wanted)

    def check(self, subject: str) -> None:
        """Raise UserError, about ``subject``, for invalid pixels or unequal classes."""
        to_unit_range(self.images, subject)
        check_counts(self.labels, self.num_classes, subject)
        if not torch.equal(self.labels, self.labels.sort().values):
            raise UserError(f"{subject}: expected images sorted by class")

    def decode(self) -> tuple[Tensor, Tensor]:
        """Training images ``(num_classes * ipc * factor**2, C, H, W)`` and their labels."""
        return decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)

    def save(self, path: str | Path) -> None:
        """Write one ``.safetensors`` file, complete or absent.

        Raises:
            UserError: if the file cannot be written.
        """
        save_set(
            path,
            [self.images],
            self.labels,
            class_names=self.class_names,
            factor=self.factor,
            mean=self.mean,
            std=self.std,
            info=self.info,
        )

    @classmethod
    def load(cls, path: str | Path, dataset: str | None = None) -> "SyntheticSet":
        """Read a file written by :meth:`save` or a set of any of the formats of :meth:`export`.

        Of those, files and folders that others made are read too: a ``.npz`` or ``.pt`` file of
        ``images`` and ``labels``, a folder of class folders, parquet files of ``image`` and
        ``label``, ``images.pt`` and ``labels.pt`` of DD-Ranking. Their images are checked, and
        sorted by class.

        Args:
            path: a file or a folder.
            dataset: whose classes, mean and standard deviation are taken where the set names none.

        Raises:
            UserError: if the set is missing, damaged, of another format or invalid.
        """
        if is_foreign(Path(path)):
            return cls._load_foreign(Path(path), dataset)
        images, labels, metadata, basis = read_stored(Path(path))
        classes, stored_ipc = len(metadata["classes"]), None
        info = {k: v for k, v in metadata.items() if k not in NAMES | {"format", "basis"}}
        factor = metadata["factor"]
        if basis is not None:
            numbers = images.unflatten(0, (classes, -1))
            images, factor, stored_ipc = basis.decode(numbers).flatten(0, 1), 1, numbers.shape[1]
            labels = torch.arange(classes).repeat_interleave(basis.images)
        return cls(
            images=images,
            labels=labels,
            class_names=tuple(metadata["classes"]),
            factor=factor,
            stored_ipc=stored_ipc,
            mean=tuple(metadata["mean"]),
            std=tuple(metadata["std"]),
            info=info,
        )

    @classmethod
    def _load_foreign(cls, path: Path, dataset: str | None) -> "SyntheticSet":
        data = None if dataset is None else dataset_info(dataset)
        content = read_content(path, *((None, None) if data is None else (data.mean, data.std)))
        subject, known = str(path), dict(content.metadata)
        mean, std = (known.pop(name, data and getattr(data, name)) for name in ("mean", "std"))
        if mean is None or std is None:
            raise UserError(f"dataset: {path} names none; give one with --dataset")
        names = known.pop("classes", None)
        count = len(names or ()) or (data and data.num_classes) or int(content.labels.max()) + 1
        images = match_channels(to_unit_range(content.images, subject), len(mean), subject)
        check_counts(content.labels, count, subject)
        order = content.labels.argsort(stable=True)
        factor = known.pop("factor", 1)
        known.pop("ipc", None)
        return cls(
            images=images[order],
            labels=content.labels[order].long(),
            class_names=tuple(names or map(str, range(count))),
            factor=factor,
            mean=tuple(mean),
            std=tuple(std),
            info=known,
            named=names is not None,
        )

    def export(self, path: str | Path, to: str, *, decoded: bool = True) -> Content:
        """Write the set for others to read; :meth:`load` reads it again.

        Args:
            path: a file or folder that does not exist.
            to: "imagefolder", "npz", "beton", "hf" or "dd-ranking".
            decoded: one image per tile, to be trained on as they are; else images as stored.

        Returns:
            What was written.

        Raises:
            UserError: if there is something already, or it cannot be written.
        """
        check_name("to", to, FORMATS)
        images, labels = self.decode() if decoded else (self.images, self.labels)
        factor = 1 if decoded else self.factor
        metadata = _describe(labels, self.class_names, factor, self.mean, self.std, self.info)
        content = Content(images.clamp(0, 1), labels, metadata)
        write_content(content, to, Path(path))
        return content


def _describe(
    labels: Tensor,
    class_names: Sequence[str],
    factor: int,
    mean: Sequence[float],
    std: Sequence[float],
    info: dict[str, Any],
) -> dict[str, Any]:
    """What a file says of its images and labels."""
    return {
        "classes": list(class_names),
        "ipc": len(labels) // len(class_names),
        "factor": factor,
        "mean": list(mean),
        "std": list(std),
        **dict(sorted(info.items())),  # files of tensors keep no order
    }


def save_set(
    path: str | Path,
    images: Sequence[Tensor],
    labels: Tensor,
    *,
    class_names: Sequence[str],
    factor: int,
    mean: Sequence[float],
    std: Sequence[float],
    info: dict[str, Any],
    basis: Basis | None = None,
) -> None:
    """Write a condensed set; the parts of ``images`` are written in turn and never concatenated.

    Args:
        path: one ``.safetensors`` file, complete or absent.
        images: float32 ``(n, C, H, W)`` in [0, 1] each.
        labels: int64, of all images.
        class_names, factor, mean, std, info: as in :class:`SyntheticSet`.
        basis: what decodes ``images``, which are then numbers; None where they are tiles.

    Raises:
        UserError: if the file cannot be written.
    """
    metadata = {"format": FORMAT, **_describe(labels, class_names, factor, mean, std, info)}
    if basis is not None:
        metadata["basis"] = asdict(basis)
    write_tensors(Path(path), {"images": images, "labels": labels}, metadata)
