"""JPEG files like ImageNet's, generated from photographs in scikit-image and scikit-learn.

python -m benchmarks.imagenet_like FOLDER [--dataset imagenet10] [--per-class 100] [--split train]
"""

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from m3d_fast.loaders.subsets import subset_classes

SHAPES = ((500, 375), (375, 500), (500, 333), (500, 500))
SHARES = (0.6, 0.2, 0.1, 0.1)
# at which these photographs have ImageNet's mean size of 105 kB
QUALITY = 95

_PHOTOGRAPHS = (
    "skimage.data/astronaut.png",
    "skimage.data/chelsea.png",
    "skimage.data/coffee.png",
    "skimage.data/hubble_deep_field.jpg",
    "skimage.data/motorcycle_left.png",
    "skimage.data/rocket.jpg",
    "sklearn.datasets.images/china.jpg",
    "sklearn.datasets.images/flower.jpg",
)


@cache
def _load_photographs() -> tuple[Image.Image, ...]:
    from importlib.resources import files

    images = []
    for name in _PHOTOGRAPHS:
        package, file = name.split("/")
        with files(package).joinpath(file).open("rb") as content:
            images.append(Image.open(content).convert("RGB"))
    return tuple(images)


def photograph(seed: Sequence[int], *, shape: tuple[int, int] | None = None) -> Image.Image:
    """A warped crop of one of the photographs, with changed colours.

    Args:
        seed: determines the image.
        shape: width and height in pixels; None to draw one of ``SHAPES``.
    """
    draw = np.random.default_rng(list(seed))
    source = _load_photographs()[draw.integers(len(_PHOTOGRAPHS))]
    drawn = SHAPES[draw.choice(len(SHAPES), p=SHARES)]
    shape = drawn if shape is None else shape
    # a quadrangle almost as large as the photograph, its corners shifted
    share = draw.uniform(0.6, 0.95)
    extent = np.array(source.size) * share
    corner = draw.uniform(0, np.array(source.size) - extent)
    corners = corner + extent * np.array([[0, 0], [0, 1], [1, 1], [1, 0]])
    corners += draw.uniform(-0.08, 0.08, (4, 2)) * extent
    corners = corners.clip(0, np.array(source.size) - 1)
    image = source.transform(
        shape, Image.Transform.QUAD, corners.ravel().tolist(), Image.Resampling.BICUBIC
    )
    if draw.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Color, ImageEnhance.Brightness, ImageEnhance.Contrast):
        image = change(image).enhance(draw.uniform(0.7, 1.3))
    # enlarging removed the grain of the sensor: add some
    grain = draw.uniform(0, 13)
    pixels = np.asarray(image, np.int16) + draw.normal(0, grain, (*image.size[::-1], 1)).astype(
        np.int16
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_tree(
    root: Path,
    classes: Sequence[str],
    per_class: int,
    *,
    split: str = "train",
    shape: tuple[int, int] | None = None,
    seed: int = 0,
) -> list[Path]:
    """Write ``ROOT/SPLIT/<class>/<class>_<number>.JPEG``; return the paths in label order."""
    paths = []
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            path = folder / f"{name}_{number:05d}.JPEG"
            image = photograph([seed, len(split), label, number], shape=shape)
            image.save(path, format="JPEG", quality=QUALITY)
            paths.append(path)
    return paths


def make_grey(path: Path) -> None:
    """Replace a file by a greyscale JPEG."""
    _open(path).convert("L").save(path, format="JPEG", quality=QUALITY)


def make_cmyk(path: Path) -> None:
    """Replace a file by a CMYK JPEG."""
    _open(path).convert("CMYK").save(path, format="JPEG", quality=QUALITY)


def make_png(path: Path) -> None:
    """Replace a file by a PNG under the same name, like ImageNet's n02105855_2933.JPEG."""
    _open(path).save(path, format="PNG")


def make_deep(path: Path) -> None:
    """Replace a file by a 16-bit greyscale PNG."""
    grey = np.asarray(_open(path).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path, format="PNG")


def truncate(path: Path, share: float = 0.5) -> None:
    """Keep the first ``share`` of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def _open(path: Path) -> Image.Image:
    with Image.open(path) as file:
        file.load()
        return file.convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset", default="imagenet10")
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--split", default="train")
    arguments = parser.parse_args()
    paths = write_tree(
        arguments.folder,
        subset_classes(arguments.dataset),
        arguments.per_class,
        split=arguments.split,
    )
    mean = sum(path.stat().st_size for path in paths) / len(paths)
    print(f"{len(paths)} images of {mean / 1e3:.0f} kB on average in {arguments.folder}")


if __name__ == "__main__":
    main()
