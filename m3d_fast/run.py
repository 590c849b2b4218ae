"""The run folder: configuration, metrics, checkpoint, resume, pictures."""

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import CondenseConfig, ResolvedConfig
from .errors import UserError
from .files import read_json, read_tensors, replace_atomically, write_json, write_tensors
from .synthetic import SyntheticSet

CHECKPOINT_FORMAT = "m3d_fast checkpoint"

# settings that may differ when a run goes on: they do not change its result
MAY_DIFFER = ("out", "data_root")
GRID_COLUMNS = 10  # images of a class shown at most


class RunFolder:
    """Files of one run; every write is complete or absent."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.checkpoint_file = self.path / "checkpoint.safetensors"
        self.synthetic_file = self.path / "synthetic.safetensors"
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluation_file = self.path / "evaluation.json"

    def check(self, config: ResolvedConfig, *, resume: bool) -> None:
        """Refuse, before any work and writing nothing, a folder that ``config`` cannot use.

        Raises:
            UserError: if it is in use, cannot be written, or holds a run of other settings.
        """
        if resume and self.config_file.exists():
            self._check_same(config)
            return
        others = self._foreign_files()
        if others:
            hint = "give another --out" if resume else "give another --out, or --resume to go on"
            raise UserError(f"run folder {self.path} is already in use ({others[0]}); {hint}")
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"run folder {self.path} cannot be made: {existing} is not writable")

    def start(self, config: ResolvedConfig, *, resume: bool) -> None:
        """Make the folder and write ``config.json``, unless the run goes on.

        Raises:
            UserError: as :meth:`check`.
        """
        self.check(config, resume=resume)
        if resume and self.config_file.exists():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run folder {self.path} cannot be made ({reason})") from error
        content = {"settings": config.as_dict(), "environment": environment()}
        write_json(self.config_file, content)

    def _foreign_files(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            # what a run killed while it wrote its first file leaves behind
            return [p.name for p in self.path.iterdir() if p.name != ".config.json.part"]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run folder {self.path} cannot be used ({reason})") from error

    def load_config(self) -> ResolvedConfig:
        """The settings the run was started with.

        Raises:
            UserError: if there are none, or the file is damaged.
        """
        content = read_json(self.config_file)
        if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
            raise UserError(f"{self.config_file}: expected the settings of a condensation")
        return ResolvedConfig.from_dict(content["settings"], self.config_file)

    def _check_same(self, config: ResolvedConfig) -> None:
        before, now = self.load_config().as_dict(), config.as_dict()
        changed = [
            f"{name} was {before[name]!r}, now {now[name]!r}"
            for name in before
            if name not in MAY_DIFFER and before[name] != now[name]
        ]
        if changed:
            raise UserError(
                f"run folder {self.path} was started with other settings: {'; '.join(changed)}; "
                f"resume with the same, or give another --out"
            )

    def save_checkpoint(self, tensors: Mapping[str, Tensor], iteration: int) -> None:
        """Replace the checkpoint by the state after ``iteration`` steps."""
        metadata = {"format": CHECKPOINT_FORMAT, "iteration": iteration}
        write_tensors(self.checkpoint_file, dict(tensors), metadata)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], int] | None:
        """The state saved last and its iteration, or None before the first checkpoint.

        Raises:
            UserError: if the file is damaged or not a checkpoint.
        """
        if not self.checkpoint_file.exists():
            return None
        tensors, metadata = read_tensors(self.checkpoint_file, CHECKPOINT_FORMAT)
        return tensors, int(metadata["iteration"])

    def condensation_seconds(self) -> float:
        """Time spent in the iterations that led to the condensed set."""
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        return float(sum(json.loads(line)["seconds"] for line in lines))

    def rewind_metrics(self, iteration: int) -> None:
        """Drop the lines after ``iteration``: the resumed run will write them again."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
            # a kill can leave the last line cut short
            if not line.endswith("\n") or json.loads(line)["iteration"] > iteration:
                break
            kept.append(line)
        with replace_atomically(self.metrics_file) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def save_pictures(self, synthetic: SyntheticSet) -> list[Path]:
        """``grid.png``, one row per class, and ``grid_decoded.png`` when the factor is above 1."""
        images = synthetic.images.unflatten(0, (synthetic.num_classes, synthetic.ipc))
        pictures = {"grid.png": images}
        if synthetic.factor > 1:
            decoded = synthetic.decode()[0]
            pictures["grid_decoded.png"] = decoded.unflatten(0, (synthetic.num_classes, -1))
        for name, rows in pictures.items():
            with replace_atomically(self.path / name) as temporary:
                save_grid(rows, temporary)
        return [self.path / name for name in pictures]


def started_config(config: CondenseConfig, *, resume: bool) -> CondenseConfig:
    """``config``; when its run goes on, what it leaves open (None) is what the run began with."""
    if not resume:
        return config
    run = RunFolder(config.out or config.resolved().out)
    if not run.config_file.exists():
        return config
    before = run.load_config().as_dict()
    return replace(
        config, **{k: before[k] for k, value in config.as_dict().items() if value is None}
    )


def save_grid(rows: Tensor, path: Path) -> None:
    """PNG of ``(classes, n, C, H, W)`` images in [0, 1]: a row per class, at most 10 columns."""
    from PIL import Image
    from torchvision.transforms.v2.functional import to_pil_image
    from torchvision.utils import make_grid

    shown = rows[:, :GRID_COLUMNS]
    grid = make_grid(shown.flatten(0, 1), nrow=shown.shape[1], padding=2, pad_value=1.0)
    picture = to_pil_image(grid)
    zoom = max(1, round(64 / rows.shape[-1]))  # small images are shown at about 64 px
    picture = picture.resize(
        (picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST
    )
    picture.save(path, format="PNG")


def environment() -> dict[str, Any]:
    """Versions, hardware and commit, for the record."""
    packages = ("m3d_fast", "torch", "torchvision", "triton", "numpy")
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Commit of the checkout this package runs from; None when it was installed."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
