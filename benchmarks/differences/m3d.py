"""M3D, mostly at one image per class: which choices of its pipeline matter?"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor, nn

from m3d_fast import basis, networks, synthetic
from m3d_fast.networks import convnet

from .study import STAGES, Difference, Study, of_protocol, of_settings

DSA = "color_crop_cutout_flip_scale_rotate"


def _interpolated_by(interpolate: Callable[..., Tensor]) -> AbstractContextManager[object]:
    return patch.object(synthetic, "F", SimpleNamespace(interpolate=interpolate))


@contextmanager
def interpolate_by(other: str, instead_of: str, **options: Any) -> Iterator[None]:
    """Tiles are up-sampled ("bilinear") or mixed ("area") in another mode."""

    def interpolate(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        if mode == instead_of:
            return F.interpolate(images, size, mode=other, **options)
        return F.interpolate(images, size, mode=mode)

    with _interpolated_by(interpolate):
        yield


@contextmanager
def enlarge_by_cosines() -> Iterator[None]:
    """Tiles are the lowest frequencies of images: up-sampled by their cosine series (DCT)."""

    def interpolate(images: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        if mode != "bilinear":
            return F.interpolate(images, size, mode=mode)
        pairs = zip(images.shape[-2:], size, strict=True)
        rows, columns = (basis.enlarge(small, large, images.device) for small, large in pairs)
        return rows @ images @ columns.T

    with _interpolated_by(interpolate):
        yield


@contextmanager
def draw_by_kaiming() -> Iterator[None]:
    """Weights from N(0, 2 / fan_in), biases 0, instead of torch's default."""

    def draw(parameter: Tensor, fan_in: int, generator: Any) -> None:
        if parameter.dim() > 1:
            parameter.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        else:
            parameter.zero_()

    with patch.object(networks, "_uniform", draw):
        yield


@contextmanager
def normalise_by_batch() -> Iterator[None]:
    """Batch norm instead of instance norm."""
    with patch.object(convnet, "InstanceNorm", nn.BatchNorm2d):
        yield


ROWS: dict[str, Difference] = {
    "base": Difference(),
    "seed 1": of_settings(seed=1),
    "seed 2": of_settings(seed=2),
    "init real": of_settings(init="real"),
    "init noise": of_settings(init="noise"),
    "mix bilinear": Difference(code=lambda: interpolate_by("bilinear", "area")),
    "mix nearest": Difference(code=lambda: interpolate_by("nearest", "area")),
    "mix antialiased": Difference(
        code=lambda: interpolate_by("bilinear", "area", antialias=True),
    ),
    "tiles bicubic": Difference(code=lambda: interpolate_by("bicubic", "bilinear")),
    "tiles nearest": Difference(code=lambda: interpolate_by("nearest", "bilinear")),
    "tiles by cosines": Difference(code=enlarge_by_cosines),
    "factor 1": of_settings(factor=1),
    "factor 3": of_settings(factor=3),
    "32 px": of_settings(size=32),
    "rate 0.3": of_settings(lr_img=0.3),
    "rate 3": of_settings(lr_img=3.0),
    # the rate grows with the images per class, the paper's does not: at one they are the same
    "10 images per class": of_settings(ipc=10),
    "10 images per class, rate 1": of_settings(ipc=10, lr_img=1.0),
    "one draw for all classes": of_settings(draws="all"),
    "real batch 64": of_settings(real_batch=64),
    "real batch 128": of_settings(real_batch=128),
    "real batch 256": of_settings(real_batch=256),
    "a network for 1 iteration": of_settings(ipm=1),
    "a network for 20 iterations": of_settings(ipm=20),
    "not augmented": of_settings(augment="none"),
    "augmented as networks are": of_settings(augment=DSA.replace("cutout_", "")),
    "all of DSA": of_settings(augment=DSA),
    "one of DSA per draw": of_settings(augment=f"one:{DSA}"),
    "float32": of_settings(precision="fp32"),
    "Kaiming": Difference(code=draw_by_kaiming),
    "Kaiming, condensation": Difference(code=draw_by_kaiming, stages=STAGES[:1]),
    "Kaiming, evaluation": Difference(code=draw_by_kaiming, stages=STAGES[1:], of="base"),
    "batch norm": Difference(code=normalise_by_batch),
    "evaluation: rate 0.003": of_protocol(lr=0.003),
    "evaluation: rate 0.03": of_protocol(lr=0.03),
    "evaluation: batch 16": of_protocol(batch_size=16),
    "evaluation: batch 256": of_protocol(batch_size=256),
    "evaluation: weight decay 0.005": of_protocol(weight_decay=0.005),
    "evaluation: cosine": of_protocol(schedule="cosine"),
    "evaluation: AdamW 0.001": of_protocol(optimizer="adamw", lr=0.001, weight_decay=0.01),
    "evaluation: no CutMix": of_protocol(cutmix=0.0),
    "evaluation: CutMix always": of_protocol(cutmix=1.0),
    "evaluation: no flip": of_protocol(augment="color_crop_scale_rotate"),
    "evaluation: cutout": of_protocol(augment=DSA),
    "evaluation: crop and flip": of_protocol(augment="crop_flip"),
    "evaluation: not augmented": of_protocol(augment="none", cutmix=0.0),
    "evaluation: 100 epochs": of_protocol(epochs=100),
    "evaluation: 1,000 epochs": of_protocol(epochs=1000),
}

STUDY = Study(
    base={
        "dataset": "fashionmnist",
        "ipc": 1,
        "iterations": 300,
        "real_batch": 32,
        "hold_out": 0.1,
    },
    epochs=300,
    repeats=2,
    rows=ROWS,
)
