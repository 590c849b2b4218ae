"""The run folder: its settings, its lock, its metrics, and what a resumed run may change."""

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import read_json, replace_atomically, write_json
from ..config import MACHINE, CondenseConfig, ResolvedConfig
from ..synthetic import SET_FILE, SyntheticSet
from .checkpoint import Checkpoints
from .environment import describe_environment
from .lock import LOCK_FILE, FolderLock

log = logging.getLogger("m3d_fast")

# settings that may differ when a run is resumed; those of the machine change its rounding
MAY_DIFFER = (
    *(
        "out",
        "data_root",
        "loader",
        "cache",
        "workers",
        "checkpoint_every",
        "log_every",
        "snapshot_every",
    ),
    *MACHINE,
)
# left behind by a run that was killed before its first file
TRACES = (LOCK_FILE, ".config.json.part")


class RunFolder:
    """Files of one run; every file is complete or absent."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.synthetic_file = self.path / SET_FILE
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluation_file = self.path / "evaluation.json"
        self.checkpoints = Checkpoints(self.path)
        self.lock = FolderLock(self.path)

    def snapshot_file(self, iteration: int) -> Path:
        """The condensed set as it was after this iteration, if the run keeps it."""
        return self.path / "snapshots" / f"{iteration:07d}.safetensors"

    def check(self, config: ResolvedConfig, *, resume: bool) -> None:
        """Refuse, before any work and without writing, a folder that ``config`` cannot use.

        Raises:
            UserError: if it is in use, cannot be written, or holds a run of other settings.
        """
        self.lock.check_free()
        if resume and self.config_file.exists():
            self._check_same_settings(config)
            return
        others = self._find_foreign_files()
        if others:
            hint = "give another --out" + ("" if resume else ", or --resume to continue its run")
            raise UserError(f"run folder {self.path} is already in use ({others[0]}); {hint}")
        existing = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise UserError(f"run folder {self.path} cannot be made: {existing} is not writable")

    def start(self, config: ResolvedConfig, *, resume: bool, pretraining: float = 0.0) -> None:
        """Make and lock the folder; write ``config.json``, or when resuming what changed.

        Args:
            config: settings of the run.
            resume: whether the folder may hold the run already.
            pretraining: seconds that training the run's networks took before its iterations.

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
            self._record_machine_changes(config)
        else:
            content = {
                "settings": config.as_dict(),
                "environment": describe_environment(),
                "pretraining_seconds": pretraining,
            }
            write_json(self.config_file, content)
        self.lock.share()  # with the other ranks of the job

    def _find_foreign_files(self) -> list[str]:
        try:
            if not self.path.exists():
                return []
            return [p.name for p in self.path.iterdir() if p.name not in TRACES]
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run folder {self.path} cannot be used ({reason})") from error

    def load_config(self) -> ResolvedConfig:
        """The settings that the run was started with.

        Raises:
            UserError: if the file is missing or damaged.
        """
        content = read_json(self.config_file)
        if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
            raise UserError(f"{self.config_file}: expected the settings of a condensation")
        return ResolvedConfig.from_dict(content["settings"], self.config_file)

    def _check_same_settings(self, config: ResolvedConfig) -> None:
        changed = [
            f"{name} was {before!r}, now {now!r}"
            for name, (before, now) in self._compare_settings(config).items()
            if name not in MAY_DIFFER
        ]
        if changed:
            raise UserError(
                f"run folder {self.path} was started with other settings: {'; '.join(changed)}; "
                f"resume with the same, or give another --out"
            )

    def _record_machine_changes(self, config: ResolvedConfig) -> None:
        """Record in ``config.json`` which machine settings changed on resume, and log them."""
        changed = {n: pair for n, pair in self._compare_settings(config).items() if n in MACHINE}
        if not changed:
            return
        text = ", ".join(f"{name} {now} instead of {was}" for name, (was, now) in changed.items())
        log.info("resumed with %s: the result may differ in rounding", text)
        content = read_json(self.config_file)
        record = {
            "iteration": self.checkpoints.newest_iteration() or 0,
            "environment": describe_environment(),
            "settings": {name: now for name, (_, now) in changed.items()},
        }
        content.setdefault("resumed", []).append(record)
        write_json(self.config_file, content)

    def _compare_settings(self, config: ResolvedConfig) -> dict[str, tuple[Any, Any]]:
        """Values at the start of the run and now, of the settings that differ."""
        before, now = self.load_config().as_dict(), config.as_dict()
        return {n: (before[n], now[n]) for n in before if before[n] != now[n]}

    @contextmanager
    def report_write_errors(self) -> Iterator[None]:
        """Report a full, failing or read-only disk as invalid input.

        Raises:
            UserError: naming the checkpoint that the run can resume from.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                raise
            raise UserError(
                f"run folder {self.path}: cannot be written ({error.strerror}); "
                f"{self.checkpoints.describe_resume_point()}"
            ) from error

    def commit(self) -> str | None:
        """Commit of the checkout that started the run; None if it was installed."""
        commit: str | None = read_json(self.config_file)["environment"]["commit"]
        return commit

    def pretraining_seconds(self) -> float:
        """Time that training networks took before the run: a pool's, whichever run trained it."""
        return float(read_json(self.config_file).get("pretraining_seconds", 0.0))

    def load_set(self) -> SyntheticSet:
        """The condensed set.

        Raises:
            UserError: if the file is missing or damaged.
        """
        return SyntheticSet.load(self.synthetic_file)

    def condensation_seconds(self) -> float:
        """Time spent in the iterations of the run; 0 before the first."""
        return float(sum(line["seconds"] for line in self.read_metrics()))

    def peak_memory(self) -> int | None:
        """Most bytes that the run took on a device, or in a process on a CPU; None before any."""
        return max((line["memory_bytes"] for line in self.read_metrics()), default=None)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def write_single_metrics(self, seconds: float, memory: int) -> None:
        """Write ``metrics.jsonl`` of a run without iterations: one line."""
        with replace_atomically(self.metrics_file) as temporary:
            record = {"iteration": 0, "loss": None, "seconds": seconds, "memory_bytes": memory}
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")

    def rewind_metrics(self, iteration: int) -> None:
        """Drop the lines after ``iteration``, which the resumed run writes again."""
        if not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True):
            # a kill can truncate the last line
            if not line.endswith("\n") or json.loads(line)["iteration"] > iteration:
                break
            kept.append(line)
        with replace_atomically(self.metrics_file) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")


def resolve_resumed_config(config: CondenseConfig, *, resume: bool) -> CondenseConfig:
    """``config``; if its run is resumed, settings that are None take the values of the run.

    On another kind of device the settings of the machine are chosen again.
    """
    if not resume:
        return config
    run = RunFolder(config.out or config.resolve().out)
    if not run.config_file.exists():
        return config
    before = run.load_config().as_dict() | {"out": str(run.path)}
    if config.device is not None and config.device[:4] != before["device"][:4]:
        before |= dict.fromkeys(MACHINE)
    given = {name: value for name, value in config.as_dict().items() if value is not None}
    options = before["options"] | given.get("options", {})
    return CondenseConfig(**(before | given | {"options": options}))
