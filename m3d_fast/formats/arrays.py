"""Sets as arrays: ``.npz`` of NumPy, ``.pt`` of torch, and the two tensors of DD-Ranking."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import UserError
from ..common.files import replace_atomically, write_json
from ..normalisation import Normalisation
from .content import METADATA_FILE, Content, check_metadata, check_tensors, read_metadata


def write_npz(content: Content, path: Path) -> None:
    """Write ``images`` float32, ``labels`` int64 and ``metadata``, JSON as text, to one file."""
    arrays: dict[str, Any] = {
        "images": content.images.numpy(),
        "labels": content.labels.numpy(),
        "metadata": np.array(json.dumps(content.metadata)),
    }
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_npz(path: Path) -> Content:
    """Read ``images`` ``(n, C, H, W)`` and ``labels`` ``(n,)`` of a ``.npz`` file.

    Raises:
        UserError: if the file is missing, damaged, or holds something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: expected a .npz file of arrays, found none ({error})") from error
    _check_names(arrays, path)
    text = str(arrays["metadata"]) if "metadata" in arrays else "{}"
    try:
        images, labels = (torch.from_numpy(arrays[name]) for name in ("images", "labels"))
        metadata = check_metadata(json.loads(text), str(path))
    except (TypeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path}: expected arrays of numbers and metadata as JSON ({error})"
        ) from error
    return _checked(images, labels, metadata, path)


def read_pt(path: Path) -> Content:
    """Read a ``.pt`` file: a dictionary of ``images`` and ``labels``, or the two in turn.

    Nothing but tensors is unpickled (``weights_only``).

    Raises:
        UserError: if the file is missing, damaged, or holds something else.
    """
    loaded = _load(path)
    if isinstance(loaded, (tuple, list)) and len(loaded) == 2:
        loaded = dict(zip(("images", "labels"), loaded, strict=True))
    _check_names(loaded, path)
    return _checked(loaded["images"], loaded["labels"], {}, path)


def write_ddranking(content: Content, folder: Path) -> None:
    """Write ``images.pt``, normalised as DD-Ranking trains on them, and ``labels.pt``."""
    normalise = Normalisation(content.metadata["mean"], content.metadata["std"])
    torch.save(normalise(content.images), folder / "images.pt")
    torch.save(content.labels, folder / "labels.pt")
    write_json(folder / METADATA_FILE, content.metadata)


def read_ddranking(
    folder: Path, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Content:
    """Read such a folder and undo the normalisation.

    Args:
        folder: that holds both files.
        mean, std: per channel, where the folder does not say them; None where not known.

    Raises:
        UserError: if a file is missing or damaged, or the normalisation is not known.
    """
    metadata = read_metadata(folder / METADATA_FILE)
    mean, std = metadata.get("mean", mean), metadata.get("std", std)
    if mean is None or std is None:
        raise UserError(f"{folder}: its images are normalised; name their data set")
    images, labels = _load(folder / "images.pt"), _load(folder / "labels.pt")
    content = _checked(images, labels, metadata, folder)
    if content.images.shape[1] != len(mean):
        raise UserError(
            f"{folder}: expected images of {len(mean)} channels, got {content.images.shape[1]}"
        )
    restored = Normalisation(mean, std).undo(content.images.float())
    return Content(restored, content.labels, metadata)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: expected a file of tensors by torch.save ({reason})") from error


def _check_names(loaded: Any, path: Path) -> None:
    names = sorted(map(str, loaded)) if isinstance(loaded, dict) else [type(loaded).__name__]
    if not {"images", "labels"} <= set(names):
        found = ", ".join(names[:5]) or "nothing"
        raise UserError(f"{path}: expected images and labels, found {found}")


def _checked(images: Any, labels: Any, metadata: Any, path: Path) -> Content:
    check_tensors(images, labels, str(path))
    assert isinstance(images, Tensor)
    return Content(images.detach(), labels.long(), metadata)
