"""Real images, served class by class."""

from .catalog import dataset_info, image_side, open_dataset
from .errors import DataError
from .memory import MemoryImages
from .protocol import RealImages
from .registry import DATASETS
from .sampling import ClassSampler
from .subsets import file_name

__all__ = [
    "DATASETS",
    "ClassSampler",
    "DataError",
    "MemoryImages",
    "RealImages",
    "dataset_info",
    "file_name",
    "image_side",
    "open_dataset",
]
