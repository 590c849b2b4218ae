"""The condensed set that a run starts from (``--init RUN_DIR`` or ``--init FILE``)."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .basis import Basis
from .common.errors import UserError
from .synthetic import SET_FILE, read_stored


def is_path(init: str) -> bool:
    """Whether the setting ``init`` is a set's path: the other values have neither slash nor dot."""
    return "/" in init or "." in init


@dataclass(frozen=True)
class StartingSet:
    """A condensed set as it is stored.

    Attributes:
        path: of the file.
        pixels: ``(C, ipc, channels, H, W)`` float32 in [0, 1]; of a basis the numbers it decodes.
        factor: tiles per side of an image.
        basis: what decodes them; None where tiles do.
    """

    path: Path
    pixels: Tensor
    factor: int
    basis: Basis | None

    @classmethod
    def load(cls, path: str | Path) -> "StartingSet":
        """Read ``synthetic.safetensors`` of a run folder, or such a file.

        Raises:
            UserError: if there is none, or it is damaged or of another format.
        """
        file = Path(path)
        file = file / SET_FILE if file.is_dir() else file
        images, _, metadata, basis = read_stored(file)
        pixels = images.unflatten(0, (len(metadata["classes"]), -1))
        return cls(file, pixels, metadata["factor"], basis)

    @property
    def decode(self) -> str:
        """ "tiles" or "basis", as the setting."""
        return "tiles" if self.basis is None else "basis"

    @property
    def decoded(self) -> int | None:
        """Images per class that a basis decodes to; None of tiles."""
        return None if self.basis is None else self.basis.images

    def check(self, shape: tuple[int, ...], factor: int, basis: Basis | None) -> None:
        """Raise UserError unless a run of these pixels, tiles and basis can start from the set."""
        if self.pixels.shape != shape:
            raise UserError(
                f"init: {self.path} holds images of shape {tuple(self.pixels.shape)} (classes, "
                f"images per class, channels, height, width), the run needs {shape}; give the "
                f"--dataset, --ipc and --size that it was condensed with"
            )
        if (self.factor, self.basis) != (factor, basis):
            raise UserError(
                f"init: {self.path} is decoded by factor {self.factor} and "
                f"{self.basis or 'no basis'}, the run by factor {factor} and "
                f"{basis or 'no basis'}; leave out --factor, --decode and --decoded"
            )
