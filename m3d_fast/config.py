"""Settings of a condensation: completed and checked before any work starts."""

from dataclasses import asdict, replace
from typing import Any

from .common.checks import check_name, check_positive
from .common.errors import UserError
from .common.hardware import compile_pays, default_precision, resolve_device
from .condense_settings import CondenseSettings
from .coreset import CORESETS
from .loaders import CACHES, LOADERS, check_split, file_name, image_side
from .methods import METHODS, Objective, add_terms, build_method, find_method
from .methods.bptt import BPTT
from .presets import (
    BY_ACCURACY,
    Preset,
    Setting,
    change_optimizer,
    fit_preset,
    network_for,
    shared_preset,
    store_as_basis,
    strong_preset,
)
from .resolved_config import ResolvedConfig
from .settings import defaults_of
from .starting_set import StartingSet, is_path

__all__ = ["MACHINE", "CondenseConfig", "ResolvedConfig"]

PRESETS = ("default", "paper", "m3d", "strong")
GROUP = 20  # classes that are compared with each other
# settings that depend on the machine: they change only the rounding of a result
MACHINE = ("device", "precision", "compile", "cuda_graphs", "class_chunk", "profile")

# settings of steps, which a coreset has not, and those of real images as they are
STEPS = (
    *(
        "lr_img",
        "lr_schedule",
        "optimizer",
        "momentum",
        "average",
        "real_batch",
        "networks_from",
        "pretrained",
        "ipm",
        "augment",
    ),
    *("kernel", "budget"),
    *("decoded", "add", "group", "draws", "snapshot_every", "pool", "pool_epochs", "pool_stages"),
)
AS_THEY_ARE = {"iterations": 0, "factor": 1, "decode": "tiles", "init": "real"}


def _check_method(name: str) -> None:
    if name == "whole":
        raise UserError(
            "method: whole is the full training set, which needs no run; expected it among the "
            "--baselines of an evaluation"
        )
    if ":" not in name:
        check_name("method", name, (*METHODS, *CORESETS))


def _choose_precision(method: Objective, device: str) -> str:
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
            config = replace(
                config, compile=compile_pays(size, embedded=config.images_through_network)
            )
        return config

    def _choose_method_settings(self, method: str, setting: Setting, device: str) -> dict[str, Any]:
        published = find_method(method).options_for(setting)
        objective = build_method(method, {**published, **self._collect_options()})
        preset = self._choose_preset(objective, setting)
        start = StartingSet.load(self.init) if self.init and is_path(self.init) else None
        decode = self.decode or (preset if start is None else start).decode
        if decode == "basis":
            preset = store_as_basis(preset, setting)
        if start is not None:
            preset = replace(preset, factor=start.factor)
            if decode == start.decode:
                preset = replace(preset, decoded=start.decoded)
        preset = change_optimizer(preset, self.optimizer or preset.optimizer, setting)
        add = dict(preset.add if self.add is None else self.add)
        combined = add_terms(objective, add)
        source = self.networks_from or combined.networks_from
        if source != "synthetic" and preset.ipm == BY_ACCURACY:
            preset = replace(preset, ipm=1)
        if source != "real" and preset.pretrained:  # another source's pool is of fully trained ones
            preset = replace(preset, pretrained=False, pool_epochs=Preset.pool_epochs)
        without_graphs = {"cuda_graphs": False} if isinstance(objective, BPTT) else {}
        return asdict(preset) | {
            **without_graphs,
            "options": asdict(objective),
            "add": add,
            "kernel": getattr(objective, "kernel", None),
            "group": GROUP,
            "lr_schedule": "constant" if self.budget else preset.lr_schedule,
            "decode": decode,
            "draws": "all" if combined.scope == "joint" or combined.grouped else "class",
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

    def _choose_preset(self, method: Objective, setting: Setting) -> Preset:
        name = self.preset or "default"
        check_name("preset", name, PRESETS)
        if name in ("strong", "m3d") and isinstance(method, BPTT):
            raise UserError(
                "preset: strong and m3d are of methods that read networks, bptt trains them; leave "
                "it out (--init RUN_DIR starts from a run of --preset strong)"
            )
        choose = {
            "default": method.preset,
            "paper": method.paper_preset,
            "m3d": shared_preset,
            "strong": strong_preset,
        }[name]
        return fit_preset(choose(setting), setting)
