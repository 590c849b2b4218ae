"""Make a table of a paper: run what is missing, and keep its results file and page."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..analysis.config import MomentsConfig
from ..common.checks import check_name, check_positive
from ..common.errors import DataError, UserError
from ..common.files import read_json, replace_atomically, write_json
from ..comparison.comparison import Comparison
from ..comparison.config import CompareConfig, split_settings
from ..comparison.entries import WHOLE
from ..evaluation.protocols import protocol_for
from ..loaders import dataset_info, image_side
from ..run.environment import describe_environment
from ..run.lock import FolderLock
from .config import ReproduceConfig, command_of
from .measures import measure_curve, measure_moments
from .page import render
from .pictures import save_strips
from .published import Published, find_published
from .tables import TABLES, quick_epochs

log = logging.getLogger("m3d_fast")

FORMAT = "m3d_fast reproduction"
LAST_ITERATES = (
    "Published M3D figures are of the best test epoch of their run, as its code keeps them; ours "
    "are last iterates of runs and of networks, and nothing was chosen on test images."
)


def reproduce(config: ReproduceConfig) -> dict[str, Any]:
    """Make a table or figure of a paper, of the data sets that are at hand.

    Every method is run in its own folder and process, resumed where it stopped, and evaluated.
    After every result ``TABLE.json`` and ``TABLE.html`` are written; parts of an earlier table in
    them, of other data sets or numbers of images, are kept.

    Args:
        config: settings.

    Returns:
        The content of ``TABLE.json``: accuracies as fractions of 1, seconds.

    Raises:
        UserError: for invalid settings or data, before anything is written; or if a run fails.
        Interrupted: after Ctrl-C or SIGTERM; finished work is kept.
    """
    return Reproduction(config).run()


@dataclass(frozen=True)
class Part:
    """One data set and number of images per class of a table.

    Attributes:
        dataset, ipc: as above.
        config: of its comparison.
        comparison: checked.
    """

    dataset: str
    ipc: int
    config: CompareConfig
    comparison: Comparison

    def find_published(self, network: str, method: str) -> Published:
        """What is published of one of its rows."""
        evaluation, size = self.config.evaluate, self.config.condense.size
        classes = dataset_info(self.dataset).num_classes or 0
        side = image_side(self.dataset, size)
        labels = protocol_for(self.dataset, side, 1, classes, evaluation.protocol).labels
        return find_published(
            *(self.dataset, self.ipc, network, method),
            size=size,
            split=evaluation.split,
            labels=labels,
        )


class Reproduction:
    """A table to be made, checked.

    Args:
        config: settings.

    Raises:
        UserError: for invalid settings or files, or if no data set is at hand.
    """

    def __init__(self, config: ReproduceConfig) -> None:
        check_name("table", config.table, TABLES)
        self._config, self._table = config, TABLES[config.table]
        default = "runs/reproduce-quick" if config.quick else "runs/reproduce"
        self.out = Path(config.out or default)
        self.page = self.out / f"{config.table}.html"
        self._file = self.out / f"{config.table}.json"
        self._lock = FolderLock(self.out, f".{config.table}.lock")
        self._lock.check_free()
        kept = _read_parts(self._file, config.table)
        self._parts, missing = self._plan()
        notes = [LAST_ITERATES, *self._table.notes]
        self._content: dict[str, Any] = {
            "format": FORMAT,
            "table": config.table,
            "title": self._table.title,
            "paper": self._table.paper,
            "notes": notes,
            "missing": missing,
            "environment": describe_environment(),
            "parts": kept,
        }

    def run(self) -> dict[str, Any]:
        """Run and measure what is missing; returns the content of the results file."""
        with self._hold():
            there = list(map(_key, self._content["parts"]))
            for part in self._parts:
                if (part.dataset, part.ipc) not in there:
                    self._update(part, {"protocol": None, "results": [], "searches": {}})
            for part in self._parts:
                results = part.comparison.run(partial(self._update, part))
                self._update(part, results, complete=True)
        log.info("page: %s, results: %s", self.page, self._file)
        return self._content

    @contextmanager
    def _hold(self) -> Iterator[None]:
        """The folder, which is made, and locked for this table."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"out: {self.out} cannot be made ({error.strerror})") from error
        with self._lock as lock:
            lock.acquire()
            yield

    def _plan(self) -> tuple[list[Part], list[dict[str, Any]]]:
        """What is to be made, and the data sets that are not at hand, each with the reason."""
        config, table = self._config, self._table
        names = [n.strip() for n in config.dataset.split(",")] if config.dataset else [*table.parts]
        for name in names:
            table.check_dataset(config.table, name)
        for ipc in config.ipc or ():
            check_positive("ipc", ipc)
        parts, missing = list[Part](), list[dict[str, Any]]()
        for name in dict.fromkeys(names):
            try:
                parts += [self._plan_part(name, ipc) for ipc in self._choose_ipc(name)]
            except DataError as error:
                log.info("%s is not at hand: %s", name, error)
                missing.append({"dataset": name, "reason": str(error)})
        if not parts:
            raise UserError(f"{config.table}: no data set is at hand: {missing[0]['reason']}")
        return parts, missing

    def _choose_ipc(self, dataset: str) -> tuple[int, ...]:
        own = self._table.parts.get(dataset) or next(iter(self._table.parts.values()))
        return tuple(dict.fromkeys(self._config.ipc or (own[:1] if self._config.quick else own)))

    def _plan_part(self, dataset: str, ipc: int) -> Part:
        config, table = self._config, self._table
        methods = (config.quick and table.quick_methods) or table.methods
        settings: dict[str, Any] = {**table.settings}
        if table.networks:
            settings["networks"] = ",".join(table.networks)
        if config.quick:
            settings |= {**table.quick, "epochs": quick_epochs(ipc)}
        given = {name: value for name, value in config.compare.items() if value is not None}
        if "lr_img" in given:  # in the place of rates to choose among
            settings.pop("lr_scales", None)
        settings |= given
        # tables share their runs, but for those whose runs have settings of their own
        kind = f"-{config.table}" if table.settings else ""
        own = {
            "dataset": dataset,
            "ipc": ipc,
            "methods": config.methods or ",".join(methods),
            "data_root": self._find_root(dataset),
            "seed": config.seed or 0,
            "out": str(self.out / f"{dataset}-ipc{ipc}{kind}"),
        }
        compare = split_settings(settings | own)
        return Part(dataset, ipc, compare, Comparison(compare))

    def _find_root(self, dataset: str) -> str | None:
        root = self._config.data_root
        if root is None:
            return None
        own = Path(root).expanduser() / dataset
        return str(own) if own.is_dir() else root

    def _update(self, part: Part, results: dict[str, Any], *, complete: bool = False) -> None:
        """Take the results of a part in, and write both files."""
        compare = part.config
        given = asdict(compare.condense) | asdict(compare.evaluate)
        rows = [self._build_row(part, *key, results) for key in part.comparison.planned]
        if complete and self._table.moments:
            self._add_moments(part, rows)
        if complete and compare.condense.snapshot_every:
            self._add_curves(part, rows)
        content = {
            "dataset": part.dataset,
            "ipc": part.ipc,
            "command": command_of(self._config),
            "quick": bool(self._config.quick),
            "complete": complete,
            "settings": {n: v for n, v in given.items() if v is not None},
            "split": compare.evaluate.split,
            "protocol": results["protocol"],
            "searches": results["searches"],
            "whole": self._find_whole(part),
            "rows": rows,
        }
        for row in filter(_has_run, rows):
            save_strips(Path(row["ours"]["run"]))
        parts = self._content["parts"]
        parts[:] = [other for other in parts if _key(other) != _key(content)] + [content]
        parts.sort(key=_key)
        write_json(self._file, self._content)
        with replace_atomically(self.page) as temporary:
            temporary.write_text(render(self._content), encoding="utf-8")

    @staticmethod
    def _find_whole(part: Part) -> float | None:
        """Published accuracy after training on all images."""
        network = part.comparison.evaluation.networks or ""
        return part.find_published(network.split(",")[0], WHOLE).accuracy

    @staticmethod
    def _build_row(
        part: Part, method: str, network: str, results: dict[str, Any]
    ) -> dict[str, Any]:
        """A row: what is published, ours if there is one, the difference."""
        published = part.find_published(network, method)
        found = (r for r in results["results"] if (r["method"], r["network"]) == (method, network))
        ours = next(found, None)
        difference = None
        if ours is not None and published.accuracy is not None:
            difference = ours["mean"] - published.accuracy
        return {
            "method": method,
            "network": network,
            "published": asdict(published),
            "ours": ours,
            "difference": difference,
        }

    def _add_moments(self, part: Part, rows: list[dict[str, Any]]) -> None:
        runs = list(dict.fromkeys(Path(row["ours"]["run"]) for row in rows if _has_run(row)))
        machine = {
            name: getattr(part.config.condense, name) for name in ("data_root", "device", "seed")
        }
        config = MomentsConfig(tsne=0, **machine)
        distances = measure_moments(runs, config)
        for row in filter(_has_run, rows):
            row["moments"] = distances[Path(row["ours"]["run"])]["condensed"]

    def _add_curves(self, part: Part, rows: list[dict[str, Any]]) -> None:
        for row in filter(_has_run, rows):
            if not row["ours"]["iterations"]:
                continue  # a coreset
            curve = measure_curve(Path(row["ours"]["run"]), part.comparison.evaluation)
            row["curve"] = [point for point in curve if point["network"] == row["network"]]


def _has_run(row: dict[str, Any]) -> bool:
    return row["method"] != WHOLE and row["ours"] is not None


def _key(part: dict[str, Any]) -> tuple[str, int]:
    return part["dataset"], part["ipc"]


def _read_parts(file: Path, table: str) -> list[dict[str, Any]]:
    """The parts of an earlier table; none without the file.

    Raises:
        UserError: if the file is damaged or of something else.
    """
    if not file.exists():
        return []
    hint = "delete it: the runs and their evaluations are kept in their own folders"
    try:
        content = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; {hint}") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("table")) != (
        FORMAT,
        table,
    ):
        raise UserError(f"{file}: expected the results of {table}, found another file; {hint}")
    parts: list[dict[str, Any]] = content["parts"]
    return parts
