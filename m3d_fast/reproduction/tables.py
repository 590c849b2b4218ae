"""What each table and figure of the papers is, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..common.checks import check_name
from ..common.errors import UserError
from ..loaders import DATASETS

LOW_RESOLUTION = ("mnist", "fashionmnist", "svhn", "cifar10", "cifar100", "tinyimagenet", "digits")
IMAGENET = tuple(name for name, info in DATASETS.items() if info.kind == "imagenet")

# budgets of --quick: the table in minutes on two cores, far from the published lengths
QUICK: Mapping[str, Any] = {"budget": 120.0, "real_batch": 32, "repeats": 3}
# gradients of losses and kernels differ in size by orders: ten digits after 60 iterations gave
# 49.6 % with the polynomial kernel at M3D's rate, 92.8 % at a ten-thousandth of it
RATES = "Every row has the learning rate that was best on held-out training images after short runs"
QUICK_EPOCHS = 240  # of one image per class; fewer of more


def quick_epochs(ipc: int) -> int:
    """Passes over a condensed set under ``--quick``: a network's time then grows slowly with it."""
    return max(1, round(QUICK_EPOCHS / ipc**0.6))


@dataclass(frozen=True)
class Table:
    """A table or figure of a paper.

    Attributes:
        title: what it shows.
        paper: where it stands.
        parts: its data sets and their images per class.
        accepts: data sets that it can be made of, its own among them.
        methods: its rows, as entries of a comparison.
        quick_methods: those under ``--quick``; () for the same.
        networks: trained on the sets; () for the network of the data set.
        moments: whether distances of moments are shown.
        settings: further settings of the comparison.
        quick: those under ``--quick``.
        notes: what to know when reading it.
    """

    title: str
    paper: str
    parts: Mapping[str, tuple[int, ...]]
    accepts: tuple[str, ...]
    methods: tuple[str, ...]
    quick_methods: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    moments: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=lambda: QUICK)
    notes: tuple[str, ...] = ()

    def check_dataset(self, table: str, name: str) -> None:
        """Raise UserError unless the table can be made of this data set."""
        check_name("dataset", name, DATASETS)
        if name not in self.accepts:
            raise UserError(
                f"dataset: {table} is made of {', '.join(self.accepts)}, got {name}; choose "
                f"another data set or table"
            )


CIFAR10 = {"cifar10": (10,)}

TABLES: dict[str, Table] = {
    "table1": Table(
        "Moments of features: distance to the real set, and accuracy",
        "M3D (arXiv 2312.15927), table 1",
        CIFAR10,
        LOW_RESOLUTION,
        ("dm", "moments[third=0]", "moments", "m3d"),
        moments=True,
        notes=(
            "The paper says neither how it measures the distances nor how it weighs the moments; "
            "ours are Euclidean distances of the class means of features, their squares and cubes, "
            "under random networks, and our weights are 1. Compare the order of the rows.",
        ),
    ),
    "table2": Table(
        "Low-resolution data sets",
        "M3D (arXiv 2312.15927), table 2",
        dict.fromkeys(("mnist", "fashionmnist", "svhn", "cifar10", "cifar100"), (1, 10, 50)),
        LOW_RESOLUTION,
        ("random", "herding", "k-center", "dc", "dsa", "cafe", "dm", "idm", "idc", "m3d", "ddm"),
        quick_methods=("random", "herding", "k-center", "dm", "m3d", "ddm"),
    ),
    "table3": Table(
        "ImageNet subsets",
        "M3D (arXiv 2312.15927), table 3",
        {"imagenet10": (10, 20), "imagenet100": (10, 20)},
        IMAGENET,
        ("random", "herding", "dsa", "dm", "idc", "m3d", "ddm"),
        quick_methods=("random", "dm", "m3d"),
    ),
    "table4": Table(
        "Other networks than the one that condensed",
        "M3D (arXiv 2312.15927), table 4",
        {"cifar10": (10, 50)},
        LOW_RESOLUTION,
        ("random", "dm", "idc", "m3d"),
        quick_methods=("random", "dm", "m3d"),
        networks=("convnet3", "resnet10", "densenet121-k12"),
    ),
    "table5": Table(
        "M3D's loss in the place of the distance of means in DM and IDM",
        "M3D (arXiv 2312.15927), table 5",
        {"cifar10": (10, 50)},
        LOW_RESOLUTION,
        ("dm", "dm[matching=mmd]", "idm", "idm[matching=mmd]"),
        settings={"lr_scales": (1.0, 10.0, 100.0)},
        notes=(f"{RATES}: 1, 10 or 100 times that of DM or IDM.",),
    ),
    "figure3": Table(
        "Accuracy over iterations",
        "M3D (arXiv 2312.15927), figure 3",
        CIFAR10,
        LOW_RESOLUTION,
        ("dm", "m3d"),
        settings={"snapshot_every": 1000},
        quick={"iterations": 500, "snapshot_every": 100, "real_batch": 32, "repeats": 1},
        notes=("The curves of the paper are pictures: no figure of them is in our data.",),
    ),
    "figure6": Table(
        "M3D's kernel, bandwidth and factor",
        "M3D (arXiv 2312.15927), figure 6 and its text",
        CIFAR10,
        LOW_RESOLUTION,
        (
            "m3d",
            "m3d[kernel=linear]",
            "m3d[kernel=polynomial]",
            "m3d[scales=0.25]",
            "m3d[scales=1]",
            "m3d[scales=4]",
            "m3d[factor=1]",
            "m3d[factor=3]",
        ),
        quick_methods=("m3d", "m3d[kernel=linear]", "m3d[kernel=polynomial]", "m3d[factor=1]"),
        settings={"lr_scales": (1e-4, 1e-2, 1.0)},
        notes=(
            "m3d has five Gaussians around the mean squared distance, and factor 2; every other "
            f"row changes what stands in its brackets. {RATES}: 1, 0.01 or 0.0001 times M3D's. The "
            "bars of the paper are pictures: no figure of them is in our data.",
        ),
    ),
    "ddm": Table(
        "Decomposed Distribution Matching: its terms",
        "DDM (arXiv 2412.04748), ablation",
        {"cifar10": (10,), "cifar100": (10,)},
        LOW_RESOLUTION,
        (
            "dm",
            "ddm[cm_weight=0,icd_weight=0]",
            "ddm[mm_weight=0,icd_weight=0]",
            "ddm[icd_weight=0]",
            "ddm[mm_weight=0,cm_weight=0]",
            "ddm",
        ),
        notes=(
            "Every row of ddm has DM's term; a weight of 0 leaves out the moments of style (mm), "
            "their correlations (cm) or the diversity (icd). The figures of the paper's ablation "
            "are not in our data; its abstract states up to 4.1 points more than the best method "
            "before it on CIFAR-10, and 4.2 on CIFAR-100.",
        ),
    ),
}
