"""Settings of a condensation: completed and checked before any work starts."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Never, Self

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
from .condense_settings import SOURCES, CondenseSettings
from .coreset import CORESETS
from .loaders import CACHES, LOADERS, check_split, dataset_info, file_name, image_side
from .methods import METHODS, Method, Scope, add_terms, build_method, find_method
from .networks import CONDENSING, build_network, check_network
from .presets import Preset, Setting, fit_preset, network_for, shared_preset
from .settings import defaults_of
from .synthetic import check_factor

INITS = ("mix", "real", "noise")
PRESETS = ("default", "paper", "m3d")
# settings that depend on the machine: they change only the rounding of a result
MACHINE = ("device", "precision", "compile", "cuda_graphs", "class_chunk", "profile")

# settings of steps, which a coreset has not, and those of real images as they are
STEPS = (
    *("budget", "lr_img", "momentum", "real_batch", "networks_from", "ipm", "augment", "kernel"),
    *("add", "pool", "pool_epochs", "pool_stages"),
)
AS_THEY_ARE = {"iterations": 0, "factor": 1, "init": "real"}


def _check_method(name: str) -> None:
    if name == "whole":
        raise UserError(
            "method: whole is the full training set, which needs no run; expected it among the "
            "--baselines of an evaluation"
        )
    if ":" not in name:
        check_name("method", name, (*METHODS, *CORESETS))


def _choose_precision(method: Method, device: str) -> str:
    if method.float32_only:
        return "tf32" if device.startswith("cuda") else "fp32"
    return default_precision(device)


class CondenseConfig(CondenseSettings[None]):
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
        check_positive("ipc", ipc)
        check_name("loader", known["loader"], LOADERS)
        check_name("cache", known["cache"], CACHES)
        check_split("train", known["hold_out"])
        size = image_side(dataset, self.size)
        device = resolve_device(self.device)
        _check_method(method)
        setting = Setting(dataset, size, ipc)
        run = f"{file_name(dataset)}-ipc{ipc}-{method.replace(':', '-')}-seed{known['seed']}"
        derived = {
            "size": size,
            "network": network_for(dataset, size),
            "out": f"runs/{run}",
            "device": device,
            "compile": False,
            "cuda_graphs": device.startswith("cuda") and not self.profile,
        }
        if method in CORESETS:
            derived |= self._fix_coreset_settings(method, device)
        else:
            derived |= self._choose_method_settings(method, setting, device)
        config = ResolvedConfig(**(known | derived | given | {"options": derived["options"]}))
        config.check()
        if self.compile is None and not config.selects:
            config = replace(config, compile=compile_pays(config.images_through_network, size))
        return config

    def _choose_method_settings(self, method: str, setting: Setting, device: str) -> dict[str, Any]:
        objective = build_method(
            method, {**find_method(method).options_for(setting), **self._collect_options()}
        )
        add = dict(self.add or {})
        combined = add_terms(objective, add)
        return asdict(self._choose_preset(objective, setting)) | {
            "options": asdict(objective),
            "add": add,
            "kernel": getattr(objective, "kernel", None),
            "networks_from": combined.networks_from,
            "precision": _choose_precision(combined, device),
        }

    def _fix_coreset_settings(self, coreset: str, device: str) -> dict[str, Any]:
        """Those of real images as they are; UserError for a setting of steps."""
        if self.options:
            raise UserError(f"option {next(iter(self.options))}: {coreset} has no options")
        for name in STEPS:
            if getattr(self, name) is not None:
                raise UserError(f"{name}: {coreset} selects real images; leave it out")
        for name, value in AS_THEY_ARE.items():
            if getattr(self, name) not in (None, value):
                raise UserError(
                    f"{name}: {coreset} keeps real images as they are; expected {value}, got "
                    f"{getattr(self, name)}"
                )
        fixed = {"options": {}, "precision": default_precision(device)}
        return fixed | AS_THEY_ARE | dict.fromkeys(STEPS)

    def _collect_options(self) -> dict[str, Any]:
        """The options given, ``kernel`` among them."""
        options = dict(self.options or {})
        if self.kernel is not None and options.setdefault("kernel", self.kernel) != self.kernel:
            raise UserError(
                f"kernel: {self.kernel} and option kernel={options['kernel']} were given; expected "
                f"one of them"
            )
        return options

    def _choose_preset(self, method: Method, setting: Setting) -> Preset:
        name = self.preset or "default"
        check_name("preset", name, PRESETS)
        if name == "m3d":
            preset = shared_preset(setting)
        else:
            preset = method.paper_preset(setting) if name == "paper" else method.preset(setting)
        return fit_preset(preset, setting)


class ResolvedConfig(CondenseSettings[Never]):
    """Complete, checked settings, made by :meth:`CondenseConfig.resolve`.

    None remains where the run decides: ``data_root``, ``workers``, ``class_chunk``,
    ``checkpoint_every``; without a ``budget``; and for settings of steps, of which a coreset has
    none.
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
        options = {
            name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in settings["options"].items()
        }
        return cls(**(settings | {"options": options}))

    def check(self) -> None:
        """Check every setting that has not been checked while it was completed.

        Raises:
            UserError: for an invalid setting.
        """
        check_positive("log_every", self.log_every)
        if not self.selects:
            self._check_steps()
        for name in ("budget", "class_chunk", "checkpoint_every", "workers"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        if self.seed < 0:
            raise UserError(f"seed: expected a whole number >= 0, got {self.seed}")
        check_factor(self.factor, self.size)
        check_precision(self.precision, self.device)
        if self.cuda_graphs and not self.device.startswith("cuda"):
            raise UserError(f"cuda_graphs: expected a CUDA device, got {self.device}")
        if self.profile and self.cuda_graphs:
            raise UserError("profile: a CUDA graph hides what runs in it; add --no-cuda-graphs")
        check_network(self.network, CONDENSING)
        with torch.device("meta"):  # raises UserError for a size the network cannot take
            build_network(self.network, dataset_info(self.dataset).channels, self.size, 2)

    def _check_steps(self) -> None:
        check_name("init", self.init, INITS)
        self._check_networks_and_scope()
        for name in ("iterations", "real_batch", "ipm", "lr_img", "pool", "pool_epochs"):
            check_positive(name, getattr(self, name))
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum: expected a number from 0 to below 1, got {self.momentum}")
        if self.precision == "bf16" and self.build_method().float32_only:
            raise UserError(
                f"precision: {self.method} matches gradients, which bf16 is too coarse for; "
                f"expected fp32 or tf32"
            )
        parse_strategy(self.augment)

    def _check_networks_and_scope(self) -> None:
        check_name("networks_from", self.networks_from, SOURCES)
        if self.build_method().experts and self.networks_from != "pool":
            raise UserError(
                f"networks_from: {self.method} reads fully trained networks too, which only a pool "
                f"has; expected pool, got {self.networks_from}"
            )
        if self.pool_stages < 0:
            raise UserError(f"pool_stages: expected a whole number >= 0, got {self.pool_stages}")
        if self.scope == "joint" and self.class_chunk is not None:
            raise UserError(
                f"class_chunk: {self.method} compares all classes with each other, so that they "
                f"are stepped together; leave out --class-chunk, or give auto"
            )

    def check_ranks(self, count: int) -> None:
        """Refuse several processes for a run whose classes depend on each other.

        Raises:
            UserError: saying why one process must have all classes.
        """
        if count == 1 or self.scope == "class":
            return
        reason = {
            "joint": "compares all classes with each other",
            "set": "trains its networks on the whole synthetic set",
        }[self.scope]
        raise UserError(
            f"{count} processes were started, but {self.method} {reason}, so that one process must "
            f"have them all; start it without torchrun"
        )

    @property
    def scope(self) -> Scope:
        """What a class's step depends on, of method and source: a "class", the "set", or "joint".

        See :class:`m3d_fast.methods.Method`.
        """
        own = self.build_method().scope
        return "set" if own == "class" and self.networks_from == "synthetic" else own

    @property
    def selects(self) -> bool:
        """Whether the method is a coreset, which takes no steps."""
        return self.method in CORESETS

    def build_method(self) -> Method:
        """The objective, with its options and the terms added."""
        return add_terms(build_method(self.method, self.options), self.add)

    @property
    def decoded_per_class(self) -> int:
        """Synthetic images of a class after decoding."""
        return self.ipc * self.factor**2

    @property
    def synthetic_per_step(self) -> int:
        """Decoded images of a class in one step; of more, a random choice."""
        return min(self.decoded_per_class, self.build_method().max_synthetic)

    @property
    def images_through_network(self) -> int:
        """Images embedded in the whole run, counted for ten classes."""
        return 10 * (self.real_batch + self.synthetic_per_step) * self.iterations
