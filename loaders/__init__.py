"""Real images, served class by class."""

from .catalog import open_dataset
from .errors import DataError
from .memory import MemoryImages
from .protocol import RealImages
from .registry import DATASETS
from .sampling import ClassSampler

__all__ = ["DATASETS", "ClassSampler", "DataError", "MemoryImages", "RealImages", "open_dataset"]
