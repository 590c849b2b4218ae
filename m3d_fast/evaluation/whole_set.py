"""All images of a data set as a training set."""

from torch import Tensor

from ..loaders import MemoryImages, RealImages
from ..synthetic import StoredImages
from .streamed_set import StreamedSet


def load_whole(real: RealImages, batch_size: int) -> tuple[StoredImages | StreamedSet, Tensor]:
    """All images and their labels: those of a small set as bytes on the device, others streamed.

    Args:
        real: the images.
        batch_size: images of a batch, at most; of a streamed set the labels are those of a batch.
    """
    if not isinstance(real, MemoryImages):
        streamed = StreamedSet(real, batch_size)
        return streamed, streamed.labels
    ((images, labels),) = real.ordered(sum(real.class_sizes))
    return StoredImages(images), labels
