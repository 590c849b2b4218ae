"""Held-out images: a share of every class, the same for every run, never drawn from."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3d_fast.loaders import DataError, MemoryImages, RealImages, open_dataset
from m3d_fast.loaders.protocol import BackEnd
from m3d_fast.loaders.readers.labelled import LabelledImages
from m3d_fast.loaders.splits import SplitBackEnd, select_images, split_class
from m3d_fast.loaders.streaming.streamed import StreamedImages
from tests.loaders.streaming.test_streamed import IMAGES, SIZES, STATISTICS, Shelf

SHARE = 0.4  # of SIZES, without the class of one image: 2, 1 and 3 images


class Rack(Shelf):
    """The first three classes of the shelf."""

    class_names = Shelf.class_names[:3]
    class_sizes = SIZES[:3]


def all_images(real: RealImages) -> list[list[bytes]]:
    """The images of every class, sorted."""
    return [
        sorted(image.numpy().tobytes() for image in real.take(c, range(size)))
        for c, size in enumerate(real.class_sizes)
    ]


def test_train_and_held_out_are_all_training_images_once() -> None:
    parts = [
        all_images(open_dataset("digits", split=split, hold_out=0.1))
        for split in ("train", "held-out")
    ]
    whole = all_images(open_dataset("digits"))
    for train, held_out, everything in zip(*parts, whole, strict=True):
        assert sorted(train + held_out) == everything
        assert len(held_out) == round(0.1 * len(everything))


def test_the_choice_does_not_depend_on_the_seed_of_the_sampling() -> None:
    one, other = (
        open_dataset("digits", split="held-out", hold_out=0.1, seed=seed) for seed in (0, 1)
    )
    assert all_images(one) == all_images(other)
    assert not torch.equal(one.batch([3], 8), other.batch([3], 8))


def test_the_test_images_stay_as_they_are() -> None:
    held = open_dataset("digits", split="test", hold_out=0.5)
    assert all_images(held) == all_images(open_dataset("digits", split="test"))


def test_streamed_images_are_split_as_those_in_memory_are() -> None:
    labels = np.repeat(np.arange(3), SIZES[:3])
    data = LabelledImages(IMAGES[: len(labels)], labels, Rack.class_names, "the test")
    rack: BackEnd = Rack()
    for split in ("train", "held-out"):
        for cache in ("none", "device"):
            in_memory = MemoryImages(select_images(data, split, SHARE), **STATISTICS, seed=4)
            streamed = StreamedImages(
                SplitBackEnd(rack, split, SHARE), **STATISTICS, seed=4, cache=cache
            )
            assert streamed.class_sizes == in_memory.class_sizes
            assert torch.equal(streamed.batch([2, 0], 4), in_memory.batch([2, 0], 4))
            assert all_images(streamed) == all_images(in_memory)
            for one, other in zip(streamed.ordered(3), in_memory.ordered(3), strict=True):
                assert torch.equal(one[0], other[0])
                assert torch.equal(one[1], other[1])


def test_held_out_images_are_never_decoded_for_training() -> None:
    rack = Rack()
    streamed = StreamedImages(
        SplitBackEnd(rack, "train", SHARE), **STATISTICS, seed=0, cache="none"
    )
    with streamed.batches([[0], [1, 2]], 7) as batches:
        for _ in range(4):
            next(batches)
    held_out, first = set[int](), 0
    for name, size in zip(rack.class_names, rack.class_sizes, strict=True):
        held_out |= {first + i for i in split_class(name, size, "held-out", SHARE)}
        first += size
    assert len(held_out) == 6
    assert not held_out & set(rack.read_rows)


def test_a_subset_holds_out_the_images_that_the_whole_set_does() -> None:
    labels = np.repeat(np.arange(3), SIZES[:3])
    whole = LabelledImages(IMAGES[: len(labels)], labels, Rack.class_names, "the test")
    cats = LabelledImages(IMAGES[8:16], np.zeros(8, np.int64), ("cat",), "the test")
    held_out = select_images(whole, "held-out", SHARE)
    assert torch.equal(held_out.images[-3:], select_images(cats, "held-out", SHARE).images)


def test_image_files_are_split(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(5):
            grey = Image.new("RGB", (8, 8), (number * 20, 0, 0))
            grey.save(folder / f"{number}.png")
    parts = [
        open_dataset("folder", tmp_path, split=split, size=8, hold_out=0.4)
        for split in ("train", "held-out")
    ]
    assert [part.class_sizes for part in parts] == [(3, 3), (2, 2)]
    reds = [part.take(0, range(part.class_sizes[0]))[:, 0, 0, 0].tolist() for part in parts]
    assert sorted(reds[0] + reds[1]) == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="hold_out: expected a share from 0 to below 1, got"):
        open_dataset("digits", hold_out=share)


def test_a_share_that_leaves_a_class_empty_is_refused() -> None:
    message = "a share of 0.001 leaves class '0', which has 142 training images, without held-out"
    with pytest.raises(DataError, match=re.escape(message)):
        open_dataset("digits", hold_out=0.001)
    with pytest.raises(DataError, match="without training images; expected a smaller one"):
        open_dataset("digits", hold_out=0.999)


def test_held_out_without_a_share_is_refused() -> None:
    with pytest.raises(DataError, match="no image was held out; give a share with --hold-out"):
        open_dataset("digits", split="held-out")
