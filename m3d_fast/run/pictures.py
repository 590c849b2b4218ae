"""Pictures of a condensed set."""

from pathlib import Path
from typing import IO

import torch.nn.functional as F
from PIL.Image import Resampling
from torch import Tensor

from ..common.files import replace_atomically
from ..formats.image_folder import to_picture
from ..synthetic import SyntheticSet, decode

ROWS, COLUMNS = 100, 10  # at most: classes, and images of each
GAP = 2  # pixels between images


def save_pictures(synthetic: SyntheticSet, folder: Path) -> list[Path]:
    """``grid.png``, a row per class, and ``grid_decoded.png`` when the factor is above 1.

    The first 100 classes and 10 images of each are shown.
    """
    images = synthetic.images.unflatten(0, (synthetic.num_classes, synthetic.ipc))
    shown = images[:ROWS, :COLUMNS]
    pictures = {"grid.png": shown}
    if synthetic.factor > 1:
        needed = -(-COLUMNS // synthetic.factor**2)
        pictures["grid_decoded.png"] = decode(shown[:, :needed], synthetic.factor)[:, :COLUMNS]
    for name, rows in pictures.items():
        with replace_atomically(folder / name) as temporary:
            save_grid(rows, temporary)
    return [folder / name for name in pictures]


def save_grid(rows: Tensor, path: Path | IO[bytes]) -> None:
    """PNG of ``(classes, n, C, H, W)`` images in [0, 1], a row per class, on white."""
    tiles = F.pad(rows, (GAP, 0, GAP, 0), value=1.0)
    grid = tiles.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
    picture = to_picture(F.pad(grid, (0, GAP, 0, GAP), value=1.0))
    zoom = max(1, round(64 / rows.shape[-1]))  # small images are shown at about 64 px
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Resampling.NEAREST)
    picture.save(path, format="PNG")
