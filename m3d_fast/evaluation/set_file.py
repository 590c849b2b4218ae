"""A condensed set without its run folder, to be evaluated."""

from dataclasses import replace
from pathlib import Path

from ..common.errors import UserError
from ..config import CondenseConfig, ResolvedConfig
from ..formats.registry import is_set_folder
from ..loaders import dataset_info
from ..run.lock import FolderLock
from ..synthetic import SyntheticSet


def is_set(path: Path) -> bool:
    """Whether a path may be that of a condensed set: a file, or a folder that holds one."""
    return path.is_file() or (path.is_dir() and is_set_folder(path))


class SetFile:
    """A file or folder of a condensed set and the results of its evaluation, beside it unless said.

    It has what an evaluation needs of a run folder (:class:`m3d_fast.run.folder.RunFolder`).

    Args:
        file: of any format that :meth:`SyntheticSet.load` reads.
        dataset: whose test images count; None for that named in the file.
        out: folder of ``<name of the file>.evaluation.json``; None for that of the file.

    Raises:
        UserError: if the set is missing, damaged, invalid or of another format, or names no data
            set.
    """

    def __init__(
        self, file: str | Path, dataset: str | None = None, out: str | None = None
    ) -> None:
        self.synthetic_file = Path(file)
        self._synthetic = SyntheticSet.load(self.synthetic_file, dataset)
        self._synthetic.check(str(file))
        named = self._synthetic.info.get("dataset")
        if dataset is None and named is None:
            raise UserError(f"dataset: {file} names none; give one with --dataset")
        self._dataset = str(dataset or named)
        self._folder = self.synthetic_file.absolute().parent if out is None else Path(out)
        is_file = self.synthetic_file.is_file()
        name = self.synthetic_file.stem if is_file else self.synthetic_file.absolute().name
        self.evaluation_file = self._folder / f"{name}.evaluation.json"
        self.lock = FolderLock(self._folder, f".{name}.lock")
        # processes that compile take turns by it
        self.config_file = self.synthetic_file

    def load_set(self) -> SyntheticSet:
        """The condensed set."""
        return self._synthetic

    def load_config(self) -> ResolvedConfig:
        """Settings of a run that could have made the set; its method is that named in the file.

        Raises:
            UserError: if the images are not of the data set's channels.
        """
        synthetic = self._synthetic
        channels, height, width = synthetic.images.shape[1:]
        expected = dataset_info(self._dataset).channels
        if height != width or channels != expected:
            raise UserError(
                f"{self.synthetic_file}: expected square images of {expected} channels for "
                f"{self._dataset}, got {channels} x {height} x {width}"
            )
        config = CondenseConfig(
            dataset=self._dataset,
            size=height,
            ipc=synthetic.stored_per_class,
            factor=synthetic.factor,
            out=str(self._folder),
        )
        return replace(config.resolve(), method=synthetic.info.get("method", "condensed"))

    def condensation_seconds(self) -> None:
        """Not known."""
        return

    def pretraining_seconds(self) -> None:
        """Not known."""
        return

    def prepare(self) -> None:
        """Make the folder of the results."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder} cannot be made ({error.strerror})") from error
