"""The training of one network of an evaluation, for benchmarks that look into it."""

from collections.abc import Iterator, Sequence

from torch import Tensor

from m3d_fast.common.hardware import default_precision, has_compiler
from m3d_fast.common.seeds import generator
from m3d_fast.evaluation.protocols import protocol_for
from m3d_fast.evaluation.trainer import Trainer
from m3d_fast.networks import build_network


def begin_training(
    dataset: str,
    images: Tensor,
    labels: Tensor,
    statistics: tuple[Sequence[float], Sequence[float]],
    classes: int,
    *,
    epochs: int,
    repeat: int = 0,
) -> tuple[Trainer, Iterator[Tensor]]:
    """A ConvNet-3 by the usual protocol, with the numbers that ``evaluate`` draws.

    Args:
        dataset: its name, by which the protocol is chosen.
        images: ``(n, C, H, W)`` float32 in [0, 1], on the device of the training.
        labels: int64 ``(n,)``.
        statistics: mean and standard deviation of each channel.
        classes: of the data set.
        epochs: passes over the images.
        repeat: number of the network.

    Returns:
        The trainer and its training, an epoch per item requested.
    """
    device, (channels, size) = images.device, images.shape[1:3]
    trainer = Trainer(
        build_network("convnet3", channels, size, classes),
        protocol_for(dataset, size, len(images) // classes, classes),
        *statistics,
        device=device,
        precision=default_precision(str(device)),
        compile=has_compiler(),
    )
    training = trainer.train(
        images,
        labels,
        epochs=epochs,
        initial=generator(0, "evaluation-network", 0, repeat, device=device),
        stream=generator(0, "evaluation-training", 0, repeat, device=device),
    )
    return trainer, training
