"""Sets as one ``.beton`` file, which FFCV reads."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from ..common.errors import UserError
from ..common.files import write_json
from .content import Content, read_metadata
from .image_folder import class_names, write_image_folder


def metadata_file(path: Path) -> Path:
    """What is known of the set beside its pixels: a file beside ``FILE.beton``."""
    return path.with_name(f"{path.name}.set.json")


def write_beton(content: Content, path: Path) -> None:
    """Write raw pixels, 8 bits of RGB, grey ones thrice: fields ``image`` and ``label``.

    Raises:
        UserError: if FFCV is not installed, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="m3d_fast-") as folder:
        write_image_folder(content, Path(folder))
        packing = ["--dataset", "folder", "--data-root", folder, "--store", "raw"]
        packing += ["--size", str(content.images.shape[-1]), "--out", str(path.absolute())]
        done = subprocess.run(  # FFCV's writer needs a fresh process
            [sys.executable, "-m", "m3d_fast.loaders.pack", *packing],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{path} was not written: {reason or done.returncode}")
    write_json(metadata_file(path), content.metadata)


def read_beton(path: Path) -> Content:
    """Read all images of a packed file; uint8 ``(n, 3, H, W)``.

    Raises:
        UserError: if FFCV is not installed, or the file is missing or damaged.
    """
    try:
        from ..loaders.ffcv.images import FfcvImages
        from ..loaders.ffcv.packed_file import open_packed

        images = FfcvImages(open_packed(path))
        rows = np.arange(sum(images.class_sizes))
        with images.read(iter([rows])) as batches:
            (pixels,) = (batch.clone() for batch in batches)
    except ModuleNotFoundError as missing:
        raise UserError(f"{path}: FFCV, which reads it, is not installed: make setup") from missing
    metadata = read_metadata(metadata_file(path))
    metadata.setdefault("classes", class_names(list(images.class_names)))
    labels = torch.arange(len(images.class_sizes)).repeat_interleave(
        torch.tensor(images.class_sizes)
    )
    return Content(pixels.contiguous(), labels, metadata)
