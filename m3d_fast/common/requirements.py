"""What the engine needs beyond the op, said when it is imported."""

import sys

import torch

PYTHON = (3, 11)
TORCH = (2, 11)


def check_versions(python: tuple[int, int], torch_version: str) -> None:
    """Refuse versions that are older than the engine's, which m3d_fast.kernels may run on.

    Raises:
        ImportError: with what was expected and given.
    """
    given = tuple(int(part) for part in torch_version.split("+")[0].split(".")[:2])
    if python < PYTHON or given < TORCH:
        raise ImportError(
            f"m3d_fast's engine expects Python >= {_join(PYTHON)} and torch >= {_join(TORCH)}, this"
            f" is Python {_join(python)} with torch {torch_version}: install newer ones with"
            " pip install 'm3d_fast[condense]'; m3d_fast.kernels works here"
        )


def _join(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


check_versions(sys.version_info[:2], torch.__version__)
