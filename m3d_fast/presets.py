"""The paper's hyper-parameters per (data set, ipc) and the evaluation protocol, as data.

Source: M3D (arXiv 2312.15927), implementation details: 10,000 iterations on low-resolution sets and
1,000 on ImageNet subsets, 5 iterations per model, image learning rate 1 and 0.1, factor 2 and 3.
Real batch and augmentation, which the paper does not state, are those of its code.
"""

from dataclasses import dataclass, replace

from .loaders import dataset_info


@dataclass(frozen=True)
class Preset:
    """Condensation settings that depend on the data set.

    Attributes:
        iterations: steps of the synthetic images.
        lr_img: learning rate, pixels in [0, 1].
        factor: tiles per side of a synthetic image.
        real_batch: real images per class and step.
        augment: DSA strategy, shared by real and synthetic images.
    """

    iterations: int = 10_000
    lr_img: float = 1.0
    factor: int = 2
    real_batch: int = 128
    augment: str = "color_crop_cutout"


LOW_RESOLUTION = Preset()
HIGH_RESOLUTION = Preset(iterations=1_000, lr_img=0.1, factor=3, real_batch=64)
# 1,797 images of 16 px: a first try takes seconds
DIGITS = Preset(iterations=200, real_batch=64)

HIGH_RESOLUTION_SIDE = 65  # pixels; the low-resolution sets of the literature have up to 64


def preset_for(dataset: str, size: int, ipc: int) -> Preset:
    """Settings for ``dataset`` at ``size`` pixels and ``ipc`` images per class.

    The loss averages over a class's images, so its gradient in a pixel shrinks as 1/ipc. The
    learning rate grows with ipc to compensate, as in the configurations derived from the paper's
    code.
    """
    if dataset == "digits":
        preset = DIGITS
    else:
        preset = HIGH_RESOLUTION if size >= HIGH_RESOLUTION_SIDE else LOW_RESOLUTION
    return replace(preset, lr_img=preset.lr_img * ipc)


def network_for(dataset: str, size: int) -> str:
    """The network that the literature condenses with at ``size`` pixels."""
    if dataset_info(dataset).kind == "imagenet" or size > 128:
        return "resnetap10"
    return "convnet3" if size < 64 else "convnet4" if size < 128 else "convnet5"


@dataclass(frozen=True)
class Protocol:
    """Training of a network on a condensed set (IDC, arXiv 2205.14959, as M3D uses it).

    SGD with momentum and cross-entropy on hard labels; the learning rate is multiplied by ``gamma``
    at ``milestones``, fractions of the epochs.

    Attributes:
        epochs: passes over the decoded set.
        repeats: networks trained.
        lr: learning rate of the network.
        weight_decay: of the network.
        batch_size: images per step.
        augment: a DSA strategy with one draw per image, or "imagenet".
        cutmix: probability of mixing a batch.
        momentum, milestones, gamma: as above.
    """

    epochs: int
    repeats: int
    lr: float
    weight_decay: float
    batch_size: int
    augment: str
    cutmix: float
    momentum: float = 0.9
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    gamma: float = 0.2


# (decoded images per class, epochs): up to this many images an ImageNet subset is trained this long
IMAGENET_EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
IMAGENET_EPOCHS_BEYOND = 300


def protocol_for(dataset: str, size: int, decoded_per_class: int, num_classes: int) -> Protocol:
    """The evaluation protocol for ``dataset`` at ``size`` pixels."""
    if size < HIGH_RESOLUTION_SIDE:
        flip = "flip_" if dataset_info(dataset).flips else ""
        return Protocol(
            epochs=1000,
            repeats=10,
            lr=0.01,
            weight_decay=5e-4,
            batch_size=64,
            augment=f"color_crop_{flip}scale_rotate",
            cutmix=0.5,
        )
    limits = (epochs for limit, epochs in IMAGENET_EPOCHS if decoded_per_class <= limit)
    epochs = next(limits, IMAGENET_EPOCHS_BEYOND)
    many = num_classes >= 100
    return Protocol(
        epochs=epochs * 2 // 3 if many else epochs,
        repeats=3,
        lr=0.1 if many else 0.01,
        weight_decay=1e-4 if many else 5e-4,
        batch_size=128 if many else 64,
        augment="imagenet",
        cutmix=1.0,
    )
