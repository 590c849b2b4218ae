"""Settings of a condensation: declared, completed and checked before any work starts."""
# ruff: noqa: RUF009  # a setting is a dataclass field

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Never, Self, TypeVar

import torch

from .augment import parse_strategy
from .common.checks import check_name, check_positive
from .common.errors import UserError
from .common.hardware import (
    check_precision,
    compile_pays,
    default_precision,
    resolve_device,
)
from .loaders import CACHES, DATASETS, LOADERS, dataset_info, file_name, image_side
from .methods import METHODS
from .networks import CONDENSING, build_network, check_network
from .presets import network_for, preset_for
from .settings import defaults_of, number_or_auto, setting
from .synthetic import check_factor

INITS = ("mix", "real", "noise")
# settings that depend on the machine: they change only the rounding of a result
MACHINE = ("device", "precision", "compile", "cuda_graphs", "class_chunk", "profile")

MAX_DECODED = 200  # synthetic images of a class per step; of more, a random choice

# type of a setting that is not given: None in CondenseConfig, Never in ResolvedConfig
Absent = TypeVar("Absent")


@dataclass(frozen=True, kw_only=True)
class _Settings(Generic[Absent]):
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
    ipc: int | Absent = setting(
        group="method", metavar="N", help="synthetic images per class", default=1
    )
    method: str | Absent = setting(
        group="method", metavar="NAME", help=f"objective: {', '.join(METHODS)}", default="m3d"
    )
    iterations: int | Absent = setting(
        group="method",
        metavar="N",
        help="steps of the images [10000; from 65 px on 1000; digits 200]",
    )
    factor: int | Absent = setting(
        group="method",
        metavar="N",
        help="tiles per side of an image, each used as an image [2; from 65 px on 3]",
    )
    init: str | Absent = setting(
        group="method",
        metavar="NAME",
        help="start from mix (real images as tiles), real (one each) or noise",
        default="mix",
    )
    lr_img: float | Absent = setting(
        group="method",
        metavar="F",
        help="learning rate of the images, pixels in [0, 1] [ipc; from 65 px on ipc/10]",
    )
    momentum: float | Absent = setting(
        group="method", metavar="F", help="momentum of the images' SGD", default=0.5
    )
    real_batch: int | Absent = setting(
        group="method",
        metavar="N",
        help="real images per class and step [128; from 65 px on, and digits, 64]",
    )
    ipm: int | Absent = setting(
        group="method",
        metavar="N",
        help="iterations per model, then a new random network",
        default=5,
    )
    network: str | Absent = setting(
        group="method", metavar="NAME", help=f"embeds the images: {', '.join(CONDENSING)} [by size]"
    )
    augment: str | Absent = setting(
        group="method", metavar="OPS", help="DSA operations, or none [color_crop_cutout]"
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
    profile: bool | Absent = setting(
        group="run", help="write trace.json and profile.txt of three warm iterations", default=False
    )

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, for ``config.json``."""
        return asdict(self)


class CondenseConfig(_Settings[None]):
    """Settings of one condensation; ``None`` means not given.

    A setting that is not given takes the paper's value for the data set; when a run is resumed,
    the run's. Every field is a flag of ``python -m m3d_fast.condense``; ``--help`` explains each.
    """

    def resolve(self) -> "ResolvedConfig":
        """The complete settings, checked.

        Raises:
            UserError, DataError: for an invalid setting, saying what was expected.
        """
        given = {name: value for name, value in self.as_dict().items() if value is not None}
        known = defaults_of(CondenseConfig) | given
        dataset, method, ipc = known["dataset"] or "", known["method"], known["ipc"]
        check_name("method", method, METHODS)
        check_name("init", known["init"], INITS)
        check_positive("ipc", ipc)
        check_name("loader", known["loader"], LOADERS)
        check_name("cache", known["cache"], CACHES)
        size = image_side(dataset, self.size)
        device = resolve_device(self.device)
        derived = asdict(preset_for(dataset, size, ipc)) | {
            "size": size,
            "network": network_for(dataset, size),
            "out": f"runs/{file_name(dataset)}-ipc{ipc}-{method}-seed{known['seed']}",
            "device": device,
            "precision": default_precision(device),
            "compile": False,
            "cuda_graphs": device.startswith("cuda") and not self.profile,
        }
        config = ResolvedConfig(**(known | derived | given))
        config.check()
        if self.compile is None:
            config = replace(config, compile=compile_pays(config.images_through_network, size))
        return config


class ResolvedConfig(_Settings[Never]):
    """Complete, checked settings, made by :meth:`CondenseConfig.resolve`.

    None remains where the run decides: ``data_root``, ``workers``, ``class_chunk``,
    ``checkpoint_every``.
    """

    @classmethod
    def from_dict(cls, settings: dict[str, Any], path: Path) -> Self:
        """The settings that a run saved in ``path``.

        Raises:
            UserError: if ``settings`` lack a name or have one that is not a setting.
        """
        names = {field.name for field in fields(cls)}
        if settings.keys() != names:
            different = ", ".join(sorted(settings.keys() ^ names))
            raise UserError(
                f"{path}: expected the settings of a condensation; unknown or missing: {different}"
            )
        return cls(**settings)

    def check(self) -> None:
        """Check every setting that has not been checked while it was completed.

        Raises:
            UserError: for an invalid setting.
        """
        for name in ("iterations", "real_batch", "ipm", "log_every", "lr_img"):
            check_positive(name, getattr(self, name))
        for name in ("class_chunk", "checkpoint_every", "workers"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: expected a number from 0 to below 1, got {self.momentum}")
        if self.seed < 0:
            raise UserError(f"seed: expected a whole number >= 0, got {self.seed}")
        check_factor(self.factor, self.size)
        check_precision(self.precision, self.device)
        if self.cuda_graphs and not self.device.startswith("cuda"):
            raise UserError(f"cuda_graphs: expected a CUDA device, got {self.device}")
        if self.profile and self.cuda_graphs:
            raise UserError("profile: a CUDA graph hides what runs in it; add --no-cuda-graphs")
        check_network(self.network, CONDENSING)
        parse_strategy(self.augment)
        with torch.device("meta"):  # raises UserError for a size the network cannot take
            build_network(self.network, dataset_info(self.dataset).channels, self.size, 2)

    @property
    def decoded_per_class(self) -> int:
        """Synthetic images of a class after decoding."""
        return self.ipc * self.factor**2

    @property
    def images_through_network(self) -> int:
        """Images embedded in the whole run, counted for ten classes."""
        return 10 * (self.real_batch + min(self.decoded_per_class, MAX_DECODED)) * self.iterations
