"""The run folder: configuration, who may use it, metrics, resume."""

import errno
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UserError
from ..common.files import read_json, replace_atomically, write_json
from ..config import MACHINE, CondenseConfig, ResolvedConfig
from .checkpoint import Checkpoints
from .lock import LOCK_FILE, FolderLock

log = logging.getLogger("m3d_fast")

# settings that may differ when a run goes on; those of the machine change its rounding
MAY_DIFFER = (
    *("out", "data_root", "loader", "cache", "workers", "checkpoint_every", "log_every"),
    *MACHINE,
)
# what a run killed before its first file leaves behind
TRACES = (LOCK_FILE, ".config.json.part")


class RunFolder:
    """Files of one run; every write is complete or absent."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.synthetic_file = self.path / "synthetic.safetensors"
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluation_file = self.path / "evaluation.json"
        self.checkpoints = Checkpoints(self.path)
        self.lock = FolderLock(self.path)

    def check(self, config: ResolvedConfig, *, resume: bool) -> None:
        """Refuse, before any work and writing nothing, a folder that ``config`` cannot use.

        Raises:
            UserError: if it is in use, cannot be written, or holds a run of other settings.
        """
        self.lock.probe()
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
        """Make the folder, take its lock and write ``config.json``, unless the run goes on.

        Raises:
            UserError: as :meth:`check`.
        """
        self.check(config, resume=resume)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run folder {self.path} cannot be made ({reason})") from error
        self.lock.acquire()
        if resume and self.config_file.exists():
            self._note_changes(config)
        else:
            content = {"settings": config.as_dict(), "environment": environment()}
            write_json(self.config_file, content)
        self.lock.share()  # the job's other ranks may come in

    def _foreign_files(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            return [p.name for p in self.path.iterdir() if p.name not in TRACES]
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
        changed = [
            f"{name} was {before!r}, now {now!r}"
            for name, (before, now) in self._changes(config).items()
            if name not in MAY_DIFFER
        ]
        if changed:
            raise UserError(
                f"run folder {self.path} was started with other settings: {'; '.join(changed)}; "
                f"resume with the same, or give another --out"
            )

    def _note_changes(self, config: ResolvedConfig) -> None:
        """Say, and keep on file, that a run goes on with other arithmetic than it began with."""
        changed = {n: pair for n, pair in self._changes(config).items() if n in MACHINE}
        if not changed:
            return
        text = ", ".join(f"{name} {now} instead of {was}" for name, (was, now) in changed.items())
        log.info("goes on with %s: the result may differ in rounding from that without", text)
        content = read_json(self.config_file)
        record = {"iteration": self.checkpoints.iteration() or 0, "environment": environment()}
        record["settings"] = {name: now for name, (_, now) in changed.items()}
        content.setdefault("resumed", []).append(record)
        write_json(self.config_file, content)

    def _changes(self, config: ResolvedConfig) -> dict[str, tuple[Any, Any]]:
        before, now = self.load_config().as_dict(), config.as_dict()
        return {n: (before[n], now[n]) for n in before if before[n] != now[n]}

    @contextmanager
    def writable(self) -> Iterator[None]:
        """Turn a disk that refuses into a mistake the caller can mend.

        Raises:
            UserError: saying which checkpoint the run can go on from.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            raise UserError(
                f"run folder {self.path}: cannot be written ({error.strerror}); "
                f"{self.checkpoints.kept()}"
            ) from error

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


def started_config(config: CondenseConfig, *, resume: bool) -> CondenseConfig:
    """``config``; when its run goes on, what was not given is what the run began with.

    On another kind of device what depends on the machine is chosen anew.
    """
    if not resume:
        return config
    run = RunFolder(config.out or config.resolved().out)
    if not run.config_file.exists():
        return config
    began = run.load_config().as_dict() | {"out": str(run.path)}
    if config.device is not None and config.device[:4] != began["device"][:4]:
        began |= dict.fromkeys(MACHINE)
    given = {name: value for name, value in config.as_dict().items() if value is not None}
    return CondenseConfig(**(began | given))


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
    here = Path(__file__).resolve().parents[1]
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
