"""The data sets by name, and what is known of each before it is opened."""

from dataclasses import dataclass, replace
from typing import Literal

from ..common.checks import check_name
from ..common.errors import DataError
from .subsets import CUSTOM, subset_classes

Kind = Literal["idx", "cifar", "svhn", "digits", "folder", "imagenet", "tinyimagenet"]

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class DatasetInfo:
    """Properties of a data set, for the command line and the documentation.

    Attributes:
        title: one line for messages.
        kind: of its files, which decides on the reader.
        num_classes: number of classes; None where the user's folder decides.
        channels: 1 or 3.
        native_size: side in pixels of the stored images; None where they vary.
        default_size: side in pixels when none is requested; None where one must be.
        mean: per channel, pixels in [0, 1].
        std: per channel, pixels in [0, 1].
        flips: whether a mirrored image still shows its class.
    """

    title: str
    kind: Kind
    num_classes: int | None
    channels: int
    native_size: int | None
    default_size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool


def _imagenet(title: str, num_classes: int) -> DatasetInfo:
    return DatasetInfo(
        f"ImageNet: {title}",
        "imagenet",
        num_classes,
        3,
        None,
        224,
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        flips=True,
    )


DATASETS: dict[str, DatasetInfo] = {
    "digits": DatasetInfo(
        # mean and std are those of the training images at 16 px
        "handwritten digits bundled with scikit-learn",
        "digits",
        10,
        1,
        8,
        16,
        (0.3050,),
        (0.3188,),
        flips=False,
    ),
    "fashionmnist": DatasetInfo(
        "Fashion-MNIST, articles of clothing", "idx", 10, 1, 28, 28, (0.2861,), (0.3530,), True
    ),
    "mnist": DatasetInfo(
        "MNIST, handwritten digits", "idx", 10, 1, 28, 28, (0.1307,), (0.3081,), False
    ),
    "svhn": DatasetInfo(
        "SVHN, house numbers",
        "svhn",
        10,
        3,
        32,
        32,
        (0.4377, 0.4438, 0.4728),
        (0.1980, 0.2010, 0.1970),
        flips=False,
    ),
    "cifar10": DatasetInfo("CIFAR-10", "cifar", 10, 3, 32, 32, _CIFAR_MEAN, _CIFAR_STD, True),
    "cifar100": DatasetInfo("CIFAR-100", "cifar", 100, 3, 32, 32, _CIFAR_MEAN, _CIFAR_STD, True),
    "imagenet10": _imagenet("ten classes of IDC", 10),
    "imagenet100": _imagenet("a hundred classes of IDC", 100),
    "imagenette": _imagenet("ten easy classes", 10),
    "imagewoof": _imagenet("ten breeds of dogs", 10),
    "imagefruit": _imagenet("ten fruits", 10),
    "imageyellow": _imagenet("ten yellow things", 10),
    "imagemeow": _imagenet("ten cats", 10),
    "imagesquawk": _imagenet("ten birds", 10),
    "imagenet1k": _imagenet("all thousand classes", 1000),
    "tinyimagenet": DatasetInfo(
        # mean and std are ImageNet's, as in the published code of distribution matching
        "Tiny ImageNet, 200 classes of ImageNet",
        "tinyimagenet",
        200,
        3,
        64,
        64,
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        flips=True,
    ),
    "folder": DatasetInfo(
        "your own images, one folder per class",
        "folder",
        None,
        3,
        None,
        None,
        _IMAGENET_MEAN,
        _IMAGENET_STD,
        flips=True,
    ),
}


def dataset_info(name: str) -> DatasetInfo:
    """Properties of a data set that are known before it is opened.

    Raises:
        DataError: for an unknown name, with the nearest ones.
    """
    if name.startswith(CUSTOM):
        title = f"ImageNet: the classes of {name.removeprefix(CUSTOM)}"
        count = len(subset_classes(name))
        return replace(DATASETS["imagenet1k"], title=title, num_classes=count)
    check_name("dataset", name, DATASETS, DataError)
    return DATASETS[name]
