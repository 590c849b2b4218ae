"""Features of a network trained briefly on real images, by which coresets are selected."""

import math
from dataclasses import replace

from ..common.processes import rank_of_process
from ..common.progress import Progress
from ..common.seeds import derive_seed, generator, seeded_globally
from ..coreset import Features, random_images
from ..loaders import RealImages
from ..synthetic import label_images
from .protocols import Protocol
from .trainer import Trainer

# training of the network: images per class, and epochs; fewer images where those of all classes,
# uint8, would take more bytes than the limit
IMAGES, EPOCHS = 500, 5
BYTES = 2e9


def train_features(trainer: Trainer, protocol: Protocol, real: RealImages, seed: int) -> Features:
    """Train a network briefly on real images.

    Args:
        trainer: of the network.
        protocol: idc's.
        real: training images.
        seed: of the evaluation, or of the run.

    Returns:
        Its map from images to features.
    """
    affordable = int(BYTES / math.prod(real.image_shape) / real.num_classes)
    per_class = min(IMAGES, max(1, affordable), *real.class_sizes)
    images = random_images(real, per_class, derive_seed(seed, "coreset", 2))
    extractor = Trainer(
        trainer.network,
        replace(protocol, epochs=EPOCHS),
        real.mean,
        real.std,
        device=trainer.device,
        precision=trainer.precision,
        compile=False,
    )
    stored, labels = label_images(images)
    label, bar = "features for the coreset", rank_of_process() == 0
    progress = Progress(label, EPOCHS, images_per_step=len(labels), bar=bar)
    with progress, seeded_globally(derive_seed(seed, "dropout", 1), trainer.device):
        training = extractor.train(
            stored,
            labels,
            initial=generator(seed, "evaluation-network", 1, device=trainer.device),
            stream=generator(seed, "evaluation-training", 1, device=trainer.device),
        )
        for epoch, _ in enumerate(training, 1):
            progress.update(epoch)
    return extractor.embed
