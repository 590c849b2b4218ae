import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from m3d_fast.loaders import DATASETS, RealImages, open_dataset


def everything(images: RealImages) -> tuple[torch.Tensor, torch.Tensor]:
    stacks = [images.take(index, range(size)) for index, size in enumerate(images.class_sizes)]
    labels = [torch.full((len(stack),), index) for index, stack in enumerate(stacks)]
    return torch.cat(stacks), torch.cat(labels)


def fingerprints(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, bytes]]:
    return sorted(
        (int(label), image.astype(np.uint8).tobytes())
        for image, label in zip(images, labels, strict=True)
    )


def test_the_splits_share_nothing_and_miss_nothing() -> None:
    digits = load_digits()
    whole = fingerprints(np.rint(digits.images * 255 / 16), digits.target)
    parts = []
    for split in ("train", "test"):
        images, labels = everything(open_dataset("digits", split=split, size=8))
        parts += fingerprints(images[:, 0].numpy(), labels.numpy())
    assert sorted(parts) == whole


def test_a_fifth_of_every_class_is_held_out() -> None:
    train, test = (open_dataset("digits", split=split) for split in ("train", "test"))
    for kept, held_out in zip(train.class_sizes, test.class_sizes, strict=True):
        assert held_out == round((kept + held_out) / 5)
    assert sum(train.class_sizes) == 1438


def test_the_split_does_not_depend_on_the_seed() -> None:
    first, _ = everything(open_dataset("digits", seed=0))
    second, _ = everything(open_dataset("digits", seed=99))
    assert torch.equal(first, second)


def test_the_mean_and_std_of_the_registry_are_measured() -> None:
    pixels = everything(open_dataset("digits"))[0].double() / 255
    assert pixels.mean().item() == pytest.approx(DATASETS["digits"].mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(DATASETS["digits"].std[0], abs=1e-4)
