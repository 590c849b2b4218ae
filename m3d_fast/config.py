"""What can be set of a condensation, checked and completed before anything starts."""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from .augment import parse_strategy
from .common.checks import check_name, check_positive
from .common.errors import UserError
from .common.hardware import PRECISIONS, compile_pays, default_precision, resolve_device
from .loaders import CACHES, DATASETS, LOADERS, dataset_info, file_name, image_side
from .methods import METHODS
from .networks import CONDENSING, build_network, check_network
from .presets import network_for, preset_for
from .settings import number_or_auto, setting
from .synthetic import check_factor

INITS = ("mix", "real", "noise")
# settings that suit the machine: they change a result in its rounding alone
MACHINE = ("device", "precision", "compile", "cuda_graphs", "class_chunk", "profile")

MAX_DECODED = 200  # synthetic images of a class per step, a random choice beyond


@dataclass(frozen=True, kw_only=True)
class CondenseConfig:
    """Settings of one condensation; ``None`` means not given.

    What is not given takes the paper's value for the data set; when a run is resumed, the run's.
    Every field is a flag of ``python -m m3d_fast.condense``; ``--help`` explains each.
    """

    dataset: str | None = setting(
        None, "data", "NAME", f"data set: {', '.join(DATASETS)}, custom:FILE"
    )
    data_root: str | None = setting(None, "data", "DIR", "folder that holds the data set")
    size: int | None = setting(
        None, "data", "PIXELS", "side of the images (the data set's own; folder has none)"
    )
    loader: str | None = setting(
        None,
        "data",
        "NAME",
        "image files through ffcv (packed once), folder (worker processes) or auto",
        usual="auto",
    )
    cache: str | None = setting(
        None,
        "data",
        "NAME",
        "where decoded images are kept: auto, device, host or none",
        usual="auto",
    )
    workers: int | None = setting(
        None, "data", "N", "threads or processes that decode images [one per core]"
    )
    ipc: int | None = setting(None, "method", "N", "synthetic images per class", usual=1)
    method: str | None = setting(
        None, "method", "NAME", "objective: " + ", ".join(METHODS), usual="m3d"
    )
    iterations: int | None = setting(
        None, "method", "N", "steps of the images [10000; from 65 px on 1000; digits 200]"
    )
    factor: int | None = setting(
        None,
        "method",
        "N",
        "tiles per side of an image, each used as an image [2; from 65 px on 3]",
    )
    init: str | None = setting(
        None,
        "method",
        "NAME",
        "start from mix (real images as tiles), real (one each) or noise",
        usual="mix",
    )
    lr_img: float | None = setting(
        None,
        "method",
        "F",
        "learning rate of the images, pixels in [0, 1] [ipc; from 65 px on ipc/10]",
    )
    momentum: float | None = setting(None, "method", "F", "momentum of the images' SGD", usual=0.5)
    real_batch: int | None = setting(
        None, "method", "N", "real images per class and step [128; from 65 px on, and digits, 64]"
    )
    ipm: int | None = setting(
        None, "method", "N", "iterations per model, then a new random network", usual=5
    )
    network: str | None = setting(
        None, "method", "NAME", f"embeds the images: {', '.join(CONDENSING)} [by size]"
    )
    augment: str | None = setting(
        None, "method", "OPS", "DSA operations, or none [color_crop_cutout]"
    )
    seed: int | None = setting(
        None, "run", "N", "one seed gives one result on one machine", usual=0
    )
    out: str | None = setting(None, "run", "DIR", "run folder [runs/DATASET-ipcN-METHOD-seedN]")
    device: str | None = setting(None, "run", "NAME", "cuda, cuda:N or cpu [cuda if there is one]")
    precision: str | None = setting(
        None,
        "run",
        "NAME",
        "network arithmetic: bf16, tf32 (CUDA) or fp32 [bf16 where in hardware]",
    )
    compile: bool | None = setting(
        None, "run", "", "torch.compile augmentation and network [if the run is long enough]"
    )
    cuda_graphs: bool | None = setting(
        None, "run", "", "launch a chunk's step as one CUDA graph [on CUDA, but for --profile]"
    )
    class_chunk: int | None = setting(
        None,
        "run",
        "N|auto",
        "classes stepped together [auto: what caches hold, or GPU memory as measured]",
        parse=number_or_auto,
    )
    checkpoint_every: int | None = setting(
        None,
        "run",
        "N",
        "iterations between checkpoints [every 30 s, or as rarely as they cost 1 % of the time]",
    )
    log_every: int | None = setting(
        None, "run", "N", "iterations between lines of metrics.jsonl", usual=10
    )
    profile: bool | None = setting(
        None, "run", "", "write trace.json and profile.txt of three warm iterations", usual=False
    )

    def resolved(self) -> "ResolvedConfig":
        """The complete settings, checked.

        Raises:
            UserError, DataError: for a setting that cannot be, saying what was expected.
        """
        given = {name: value for name, value in self.as_dict().items() if value is not None}
        usual = {f.name: f.metadata["usual"] for f in fields(CondenseConfig)} | given
        dataset, method, ipc = usual["dataset"] or "", usual["method"], usual["ipc"]
        check_name("method", method, METHODS)
        check_name("init", usual["init"], INITS)
        check_positive("ipc", ipc)
        check_name("loader", usual["loader"], LOADERS)
        check_name("cache", usual["cache"], CACHES)
        size = image_side(dataset, self.size)
        device = resolve_device(self.device)
        defaults = asdict(preset_for(dataset, size, ipc)) | {
            "size": size,
            "network": network_for(dataset, size),
            "out": f"runs/{file_name(dataset)}-ipc{ipc}-{method}-seed{usual['seed']}",
            "device": device,
            "precision": default_precision(device),
            "compile": False,
            "cuda_graphs": device.startswith("cuda") and not self.profile,
        }
        config = ResolvedConfig(**(usual | defaults | given))
        config.check()
        if self.compile is None:
            config = replace(config, compile=compile_pays(config.images_through_network, size))
        return config

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, for ``config.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: dict[str, Any], path: Path) -> Self:
        """The configuration saved in ``path``.

        Raises:
            UserError: if ``settings`` are not those of a configuration.
        """
        names = {f.name for f in fields(cls)}
        if settings.keys() != names:
            odd = ", ".join(sorted(settings.keys() ^ names))
            raise UserError(f"{path}: expected the settings of a condensation; odd names: {odd}")
        return cls(**settings)


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(CondenseConfig):
    """Complete, checked settings, as :meth:`CondenseConfig.resolved` makes them.

    None remains where the run decides as it goes: ``data_root``, ``workers``, ``class_chunk``,
    ``checkpoint_every``.
    """

    dataset: str
    loader: str
    cache: str
    ipc: int
    method: str
    init: str
    momentum: float
    ipm: int
    seed: int
    log_every: int
    size: int
    iterations: int
    factor: int
    lr_img: float
    real_batch: int
    network: str
    augment: str
    out: str
    device: str
    precision: str
    compile: bool
    cuda_graphs: bool
    profile: bool

    def check(self) -> None:
        """Raise UserError for a setting that cannot be."""
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
        check_name("precision", self.precision, PRECISIONS)
        if not self.device.startswith("cuda"):
            if self.precision == "tf32":
                raise UserError("precision: tf32 is a GPU's; expected bf16 or fp32 on a CPU")
            if self.cuda_graphs:
                raise UserError(f"cuda_graphs: expected a CUDA device, got {self.device}")
        if self.profile and self.cuda_graphs:
            raise UserError("profile: a CUDA graph hides what runs in it; add --no-cuda-graphs")
        check_network(self.network, CONDENSING)
        parse_strategy(self.augment)
        with torch.device("meta"):  # refuses a size the network cannot take
            build_network(self.network, dataset_info(self.dataset).channels, self.size, 2)

    @property
    def decoded_per_class(self) -> int:
        """Synthetic images of a class after decoding."""
        return self.ipc * self.factor**2

    @property
    def images_through_network(self) -> int:
        """Images embedded in the whole run, counted for ten classes."""
        return 10 * (self.real_batch + min(self.decoded_per_class, MAX_DECODED)) * self.iterations
