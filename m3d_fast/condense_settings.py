"""The settings of a condensation, each of them a flag of the command line."""
# ruff: noqa: RUF009  # a setting is a dataclass field

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from .coreset import CORESETS
from .loaders import DATASETS
from .methods import METHODS, TERMS
from .methods.kernels import KERNELS
from .networks import CONDENSING
from .schedule import SCHEDULES
from .settings import number_or_auto, option, setting, weights

# where the network of an iteration comes from
SOURCES = ("random", "pool", "queue", "real", "synthetic")
DECODERS = ("tiles", "basis")
OPTIMIZERS = ("sgd", "adam")  # of the images

# type of a setting that is not given: None in CondenseConfig, Never in ResolvedConfig
Absent = TypeVar("Absent")


@dataclass(frozen=True, kw_only=True)
class CondenseSettings(Generic[Absent]):
    """Every setting; ``Absent`` is the type of one that is not given, unless the run decides."""

    dataset: str | Absent = setting(
        group="data", metavar="NAME", help=f"data set: {', '.join(DATASETS)}, custom:FILE"
    )
    data_root: str | None = setting(
        group="data", metavar="DIR", help="folder that holds the data set"
    )
    size: int | Absent = setting(
        group="data",
        metavar="PIXELS",
        help="side of the images (the data set's own; folder has none)",
    )
    loader: str | Absent = setting(
        group="data",
        metavar="NAME",
        help="image files through ffcv (packed once), folder (worker processes) or auto",
        default="auto",
    )
    cache: str | Absent = setting(
        group="data",
        metavar="NAME",
        help="where decoded images are kept: auto, device, host or none",
        default="auto",
    )
    workers: int | None = setting(
        group="data", metavar="N", help="threads or processes that decode images [one per core]"
    )
    hold_out: float | Absent = setting(
        group="data",
        metavar="SHARE",
        help="share of every class's training images that the run never sees, for choices made "
        "with evaluate --split held-out",
        default=0.0,
    )
    ipc: int | Absent = setting(
        group="method", metavar="N", help="synthetic images per class", default=1
    )
    method: str | Absent = setting(
        group="method",
        metavar="NAME",
        help=f"objective: {', '.join(METHODS)}, or your own package.module:Class; or a coreset: "
        f"{', '.join(CORESETS)}",
        default="m3d",
    )
    options: Mapping[str, Any] | Absent = setting(
        group="method",
        flag="--set",
        metavar="NAME=VALUE",
        help="an option of the method; may be repeated",
        parse=option,
    )
    add: Mapping[str, float] | Absent = setting(
        group="method",
        metavar="TERM:WEIGHT,...",
        help=f"terms added to the method's loss: {', '.join(TERMS)}; calibration takes networks "
        "from a pool; or none [none; --preset strong ridge:1, of pixels ridge:1,calibration:0.1]",
        parse=weights,
    )
    group: int | Absent = setting(
        group="method",
        metavar="N",
        help="classes that a term compares with each other (ridge), at most: equal groups of "
        "consecutive classes [20]",
    )
    draws: str | Absent = setting(
        group="method",
        metavar="NAME",
        help="augmentation of a step: one for each class, or one for all [class; all where classes "
        "are compared]",
    )
    kernel: str | None = setting(
        group="method",
        metavar="NAME",
        help=f"of a method that has one: {', '.join(KERNELS)}; short for --set kernel=NAME",
    )
    preset: str | Absent = setting(
        group="method",
        metavar="NAME",
        help="settings not given: default (the method's), paper (exactly as published), m3d (M3D's "
        "for every method, to compare methods under one), or strong (ridge regression, average, "
        "a basis: most accurate)",
        default="default",
    )
    iterations: int | Absent = setting(
        group="method",
        metavar="N",
        help="steps of the images [m3d: 10000; from 65 px on 1000; digits 200]",
    )
    budget: float | None = setting(
        group="method",
        metavar="SECONDS",
        help="stop after this many seconds of iterations, compiling not counted, also if they are "
        "interrupted and resumed",
    )
    factor: int | Absent = setting(
        group="method",
        metavar="N",
        help="tiles per side of an image, each used as an image [m3d: 2; from 65 px on 3; a basis "
        "from --ipc 2 on, and --preset strong from --ipc 100 on, to 64 px: 1]",
    )
    decode: str | Absent = setting(
        group="method",
        metavar="NAME",
        help=f"how stored numbers become images, {' or '.join(DECODERS)}: a group of classes "
        "learns and shares it, and coefficients of each image [tiles; --preset strong: basis "
        "below --ipc 100, to 64 px]",
    )
    decoded: int | None = setting(
        group="method",
        metavar="N",
        help="images per class that a basis decodes to; its side is that of a tile, its components "
        "are as many as fit into the same numbers [18 for --ipc 1, 8 for each of more, up to 200]",
    )
    init: str | Absent = setting(
        group="method",
        metavar="NAME",
        help="start from mix (real images as tiles), real (one each), noise, or a condensed set: "
        "its run folder or file, with a slash or a dot in it [m3d: mix]",
    )
    lr_img: float | Absent = setting(
        group="method",
        metavar="F",
        help="learning rate of the images, pixels in [0, 1] [m3d: ipc, from 65 px on ipc/10; with "
        "--preset paper 1 and 0.1; with --optimizer adam 0.01]",
    )
    lr_schedule: str | Absent = setting(
        group="method",
        metavar="NAME",
        help=f"the learning rate over the iterations: {', '.join(SCHEDULES)} (to a half after 60, "
        "80 and 90 %) [constant; cafe without --budget: halved]",
    )
    optimizer: str | Absent = setting(
        group="method",
        metavar="NAME",
        help=f"of the images: {', '.join(OPTIMIZERS)} [sgd; ncfm, and for a basis: adam]",
    )
    momentum: float | Absent = setting(
        group="method",
        metavar="F",
        help="momentum of the images' SGD, or first beta of Adam [0.5; adam 0.9]",
    )
    average: float | Absent = setting(
        group="method",
        metavar="F",
        help="decay of the moving average of the images over the steps, which is then the result; "
        "0 keeps the last iterate [0; --preset strong 0.95]",
    )
    real_batch: int | Absent = setting(
        group="method",
        metavar="N",
        help="real images per class and step [m3d: 128; from 65 px on, and digits, 64; --preset "
        "strong from --ipc 50 on, to 64 px: 256]",
    )
    networks_from: str | Absent = setting(
        group="method",
        metavar="NAME",
        help=f"source of the embedding networks: {', '.join(SOURCES)} [the method's; m3d: random]",
    )
    ipm: int | Absent = setting(
        group="method",
        metavar="N",
        help="iterations per model, then another network; 0, of --networks-from synthetic alone: "
        "until its accuracy on real images settles [m3d: 5; cafe 0]",
    )
    pretrained: bool | Absent = setting(
        group="method",
        help="networks that train on real images start from those of a pool, not from random ones "
        "[no; idc on imagenet10 and imagenet100]",
    )
    pool: int | Absent = setting(
        group="method",
        metavar="N",
        help="networks of the pool, trained once for all runs that share it in ~/.cache/m3d_fast, "
        "or $M3D_FAST_CACHE [10; digits 3]",
    )
    pool_epochs: float | Absent = setting(
        group="method",
        metavar="F",
        help="passes over the training set that train each network of the pool [60; digits 5]",
    )
    pool_stages: int | Absent = setting(
        group="method",
        metavar="N",
        help="stages of its training, equally far apart, at which a network of the pool embeds; 0 "
        "mixes its weights as drawn and as trained [0]",
    )
    network: str | Absent = setting(
        group="method", metavar="NAME", help=f"embeds the images: {', '.join(CONDENSING)} [by size]"
    )
    augment: str | Absent = setting(
        group="method",
        metavar="OPS",
        help="DSA operations, none, or one:OPS for one of them per draw [m3d: color_crop_cutout]",
    )
    seed: int | Absent = setting(
        group="run", metavar="N", help="one seed gives one result on one machine", default=0
    )
    out: str | Absent = setting(
        group="run", metavar="DIR", help="run folder [runs/DATASET-ipcN-METHOD-seedN]"
    )
    device: str | Absent = setting(
        group="run", metavar="NAME", help="cuda, cuda:N or cpu [cuda if there is one]"
    )
    precision: str | Absent = setting(
        group="run",
        metavar="NAME",
        help="network arithmetic: bf16, tf32 (CUDA) or fp32 [bf16 where in hardware]",
    )
    compile: bool | Absent = setting(
        group="run", help="torch.compile augmentation and network [if the run is long enough]"
    )
    cuda_graphs: bool | Absent = setting(
        group="run", help="launch a chunk's step as one CUDA graph [on CUDA, but for --profile]"
    )
    class_chunk: int | None = setting(
        group="run",
        metavar="N|auto",
        help="classes stepped together [auto: what caches hold, or GPU memory as measured]",
        parse=number_or_auto,
    )
    checkpoint_every: int | None = setting(
        group="run",
        metavar="N",
        help="iterations between checkpoints "
        "[every 30 s, or as rarely as they cost 1 % of the time]",
    )
    log_every: int | Absent = setting(
        group="run", metavar="N", help="iterations between lines of metrics.jsonl", default=10
    )
    snapshot_every: int | None = setting(
        group="run",
        metavar="N",
        help="also keep the condensed set as it is every N iterations, in snapshots/, for "
        "evaluate --set [never]",
    )
    profile: bool | Absent = setting(
        group="run", help="write trace.json and profile.txt of three warm iterations", default=False
    )

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, for ``config.json``."""
        return asdict(self)
