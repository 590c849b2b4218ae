"""Real images, served class by class."""

from ..common.errors import DataError
from .backends import LOADERS
from .catalog import CACHES, image_side, open_dataset
from .memory import MemoryImages
from .protocol import RealImages
from .registry import DATASETS, dataset_info
from .sampling import ClassSampler
from .splits import SPLITS, check_split
from .subsets import file_name

__all__ = [
    "CACHES",
    "DATASETS",
    "LOADERS",
    "SPLITS",
    "ClassSampler",
    "DataError",
    "MemoryImages",
    "RealImages",
    "check_split",
    "dataset_info",
    "file_name",
    "image_side",
    "open_dataset",
]
