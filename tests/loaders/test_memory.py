import re

import numpy as np
import pytest
import torch

from m3d_fast.loaders import ClassSampler, DataError, MemoryImages
from m3d_fast.loaders.readers.labelled import LabelledImages

LABELS = [2, 0, 1, 2, 2, 0, 1, 2, 0]
# indices of the images of each class, in the order given
MEMBERS = {0: [1, 5, 8], 1: [2, 6], 2: [0, 3, 4, 7]}


def some_data(**changes: object) -> LabelledImages:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 2, 3, 4), dtype=torch.uint8, generator=generator)
    fields: dict[str, object] = {
        "images": images,
        "labels": np.array(LABELS),
        "class_names": ("ant", "bee", "cat"),
        "source": "the test",
    }
    return LabelledImages(**(fields | changes))  # type: ignore[arg-type]


def resident(data: LabelledImages | None = None, seed: int = 5) -> MemoryImages:
    return MemoryImages(data or some_data(), mean=(0.1, 0.2), std=(0.3, 0.4), seed=seed)


def test_it_says_what_it_holds() -> None:
    images = resident()
    assert images.num_classes == 3
    assert images.class_names == ("ant", "bee", "cat")
    assert images.class_sizes == (3, 2, 4)
    assert images.image_shape == (2, 3, 4)
    assert images.mean == (0.1, 0.2)
    assert images.std == (0.3, 0.4)
    assert images.device == torch.device("cpu")


@pytest.mark.parametrize("class_index", [0, 1, 2])
def test_take_keeps_the_given_order_within_a_class(class_index: int) -> None:
    data = some_data()
    taken = resident(data).take(class_index, range(len(MEMBERS[class_index])))
    assert torch.equal(taken, data.images[MEMBERS[class_index]])


@pytest.mark.parametrize(
    "indices",
    [[3, 0, 3], np.array([3, 0, 3], np.int32), torch.tensor([3, 0, 3])],
    ids=["list", "array", "tensor"],
)
def test_take_repeats_and_reorders(indices: object) -> None:
    data = some_data()
    taken = resident(data).take(2, indices)  # type: ignore[arg-type]
    assert torch.equal(taken, data.images[[7, 0, 7]])


def test_take_of_nothing_is_empty_and_take_draws_nothing() -> None:
    images = resident()
    assert images.take(0, []).shape == (0, 2, 3, 4)
    images.take(0, [1, 2])
    assert images.state_dict()["positions"].tolist() == [0, 0, 0]


def test_batch_is_what_the_sampler_draws() -> None:
    images = resident()
    sampler = ClassSampler((3, 2, 4), 5)
    for classes, per_class in (([2, 0], 3), ([0, 1, 2], 5), ([1], 1), ([2, 2], 2)):
        batch = images.batch(classes, per_class)
        drawn = sampler.draw(classes, per_class)
        assert batch.dtype == torch.uint8
        assert batch.shape == (len(classes), per_class, 2, 3, 4)
        for row, class_index, indices in zip(batch, classes, drawn, strict=True):
            assert torch.equal(row, images.take(class_index, indices))


def test_sorted_and_shuffled_storage_serve_the_same() -> None:
    data = some_data()
    order = np.argsort(LABELS, kind="stable")
    ordered = some_data(images=data.images[order], labels=np.array(LABELS)[order])
    assert torch.equal(resident(ordered).batch([0, 1, 2], 7), resident(data).batch([0, 1, 2], 7))


def test_a_batch_is_the_callers_own() -> None:
    images = resident()
    before = images.take(0, [0, 1, 2])
    images.batch([0], 3).zero_()
    assert torch.equal(images.take(0, [0, 1, 2]), before)


def test_resumed_equals_uninterrupted() -> None:
    straight, resumed = resident(), resident()
    straight.batch([0, 2], 5)
    resumed.load_state_dict(straight.state_dict())
    assert torch.equal(straight.batch([0, 1, 2], 6), resumed.batch([0, 1, 2], 6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": torch.zeros(9, 2, 3, 4)},
            "images must be uint8 (N, C, H, W), got torch.float32 of shape (9, 2, 3, 4)",
        ),
        ({"labels": np.array(LABELS[1:])}, "the test holds 9 images but 8 labels"),
        (
            {"labels": np.array([*LABELS[1:], 3])},
            "labels must be 0 to 2, but the test holds the label 3 (entry 8)",
        ),
        ({"labels": np.array([-1, *LABELS[1:]])}, "holds the label -1 (entry 0)"),
        ({"class_names": ("ant", "bee", "cat", "dog")}, "class 'dog' of the test has no image"),
    ],
)
def test_data_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        resident(some_data(**changes))


def test_mean_and_std_have_one_number_per_channel() -> None:
    with pytest.raises(DataError, match="one number for each of 2 channels, got 2 and 1"):
        MemoryImages(some_data(), mean=(0.0, 0.0), std=(1.0,))


@pytest.mark.parametrize(
    ("class_index", "indices", "message"),
    [
        (3, [0], "class 3 does not exist: classes are 0 to 2"),
        (-1, [0], "class -1 does not exist"),
        (1, [0, 2], "images of class 1 (bee) are 0 to 1, got indices from 0 to 2"),
        (1, [-1], "got indices from -1 to -1"),
        (1, [0.5], "indices must be a list of integers, got float64 (1,)"),
        (1, [[0]], "indices must be a list of integers, got int64 (1, 1)"),
    ],
)
def test_images_that_are_not_there_are_refused(
    class_index: int, indices: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        resident().take(class_index, indices)


def test_batches_are_the_draws_of_batch_in_turn() -> None:
    ahead, behind = resident(), resident()
    cycle = [range(1), range(1, 3)]
    with ahead.batches(cycle, 2) as stream:
        for step in range(5):
            assert torch.equal(next(stream), behind.batch(cycle[step % 2], 2))
    assert np.array_equal(ahead.state_dict()["positions"], behind.state_dict()["positions"])


def test_ordered_gives_every_image_once_by_class() -> None:
    real = resident()
    pieces = list(real.ordered(2))
    assert [len(labels) for _, labels in pieces[:-1]] == [2] * (len(pieces) - 1)
    labels = torch.cat([labels for _, labels in pieces])
    assert torch.equal(labels.bincount(), torch.tensor(real.class_sizes))
    expected = torch.cat([real.take(c, range(n)) for c, n in enumerate(real.class_sizes)])
    assert torch.equal(torch.cat([images for images, _ in pieces]), expected)
    assert all((labels[1:] >= labels[:-1]).tolist())
    with pytest.raises(DataError, match="batch size"):
        real.ordered(0)
