"""A condensed set without its run folder, to be evaluated."""

from dataclasses import replace
from pathlib import Path

from ..common.errors import UserError
from ..config import CondenseConfig, ResolvedConfig
from ..loaders import dataset_info
from ..run.lock import FolderLock
from ..synthetic import SyntheticSet


class SetFile:
    """A file of a condensed set and the results of its evaluation, beside it unless said.

    It has what an evaluation needs of a run folder (:class:`m3d_fast.run.folder.RunFolder`).

    Args:
        file: ``.safetensors``, as condensations write it.
        dataset: whose test images count; None for that named in the file.
        out: folder of ``<name of the file>.evaluation.json``; None for that of the file.

    Raises:
        UserError: if the file is missing, damaged or of another format, or names no data set.
    """

    def __init__(
        self, file: str | Path, dataset: str | None = None, out: str | None = None
    ) -> None:
        self.synthetic_file = Path(file)
        self._synthetic = SyntheticSet.load(self.synthetic_file)
        named = self._synthetic.info.get("dataset")
        if dataset is None and named is None:
            raise UserError(f"dataset: {file} names none; give one with --dataset")
        self._dataset = str(dataset or named)
        self._folder = self.synthetic_file.parent if out is None else Path(out)
        self.evaluation_file = self._folder / f"{self.synthetic_file.stem}.evaluation.json"
        self.lock = FolderLock(self._folder, f".{self.synthetic_file.stem}.lock")
        # processes that compile take turns by it
        self.config_file = self.synthetic_file

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
            ipc=synthetic.ipc,
            factor=synthetic.factor,
            out=str(self._folder),
        )
        return replace(config.resolve(), method=synthetic.info.get("method", "condensed"))

    def condensation_seconds(self) -> None:
        """Not known."""
        return

    def prepare(self) -> None:
        """Make the folder of the results."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self._folder} cannot be made ({error.strerror})") from error
