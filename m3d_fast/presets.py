"""Published hyper-parameters of condensation, as data.

Presets belong to (method, data set, images per class): a method's ``preset`` returns one of these.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .loaders import dataset_info

HIGH_RESOLUTION_SIDE = 65  # pixels; the low-resolution sets of the literature have up to 64
MANY_CLASSES = 100  # from which IDC (arXiv 2205.14959) has other settings for ImageNet


class Setting(NamedTuple):
    """What a preset depends on, besides the method.

    Attributes:
        dataset: name of the data set.
        size: image side in pixels.
        ipc: synthetic images per class.
    """

    dataset: str
    size: int
    ipc: int

    @property
    def high_resolution(self) -> bool:
        """Whether the literature counts the images as high-resolution (ImageNet subsets)."""
        return self.size >= HIGH_RESOLUTION_SIDE


@dataclass(frozen=True)
class Preset:
    """Condensation settings of a method, unless set.

    Attributes:
        iterations: steps of the synthetic images.
        lr_img: learning rate, pixels in [0, 1].
        lr_schedule: its course over the iterations: constant, cosine or halved.
        factor: tiles per side of a synthetic image.
        decode: "tiles" or "basis".
        decoded: images per class that a basis decodes to; None of tiles.
        real_batch: real images per class and step.
        augment: DSA strategy, shared by real and synthetic images.
        init: initial images: mix, real or noise.
        optimizer: of the images, "sgd" or "adam".
        momentum: of the images' SGD; the first beta of Adam.
        average: decay of the images' moving average; 0 for none.
        ipm: iterations per model, then another network; or BY_ACCURACY.
        pretrained: whether networks that train on real images start from those of a pool.
        pool, pool_epochs, pool_stages: networks of a pool, passes over the training set that train
            each, and stages of the training that embed (0: mixtures of drawn and trained).
        add: terms added to the method's loss, and their weights.
    """

    iterations: int = 10_000
    lr_img: float = 1.0
    lr_schedule: str = "constant"
    factor: int = 2
    decode: str = "tiles"
    decoded: int | None = None
    real_batch: int = 128
    augment: str = "color_crop_cutout"
    init: str = "mix"
    optimizer: str = "sgd"
    momentum: float = 0.5
    average: float = 0.0
    ipm: int = 5
    pretrained: bool = False
    pool: int = 10
    pool_epochs: float = 60.0
    pool_stages: int = 0
    add: Mapping[str, float] = field(default_factory=dict)


# M3D (arXiv 2312.15927), implementation details: 10,000 iterations on low-resolution sets and 1,000
# on ImageNet subsets, 5 iterations per model, learning rate 1 and 0.1, factor 2 and 3. Real batch
# and augmentation, which the paper does not state, are those of its code
LOW_RESOLUTION = Preset()
HIGH_RESOLUTION = Preset(iterations=1_000, lr_img=0.1, factor=3, real_batch=64)
# scikit-learn's digits, 1,797 images of 16 px: a first try takes seconds, whatever the method
DIGITS_ITERATIONS, DIGITS_BATCH, DIGITS_POOL, DIGITS_POOL_EPOCHS = 200, 64, 3, 5.0

STRONG_ITERATIONS = 1_000
STRONG_RATE = 5.0  # at most: at 50 images per class 25 moves away, and 15 gained nothing
STRONG_WHOLE = 100  # images per class from which they are whole, since a basis decodes to few more
STRONG_MANY = 50  # images per class from which more real images gain more than iterations

# images of a class, where the batches of IDM and NCFM would exceed it
CLASS_SIZES = {"cifar100": 500, "tinyimagenet": 500}

# images per class that a basis decodes to: of a tile's side, for one stored image; whole, for each
# stored one, and at most, unless more are stored
BASIS_TILES, BASIS_IMAGES, MOST_DECODED = 18, 8, 200

# Adam moves every pixel by about its rate in a step, whatever the size of the gradient
ADAM_LR, ADAM_MOMENTUM = 0.01, 0.9

# passes over the training set that IDC's networks have behind them when they are drawn
IDC_EPOCHS = {"imagenet10": 10.0, "imagenet100": 5.0}
IDC_RATES = {"mnist": 1e-4, "fashionmnist": 1e-4}  # matched by L1, not by squares

# of BPTT: iterations, rate of one image per class, and real images of all classes in an iteration
BPTT_ITERATIONS, BPTT_RATE, BPTT_REAL = 200, 0.003, 500

BY_ACCURACY = 0  # iterations per model: as its accuracy on real images says (CAFE)

# DM (arXiv 2110.04181): real images, a new network every iteration, one operation of DSA per draw
DM = Preset(iterations=20_000, factor=1, real_batch=256, init="real", ipm=1)


def fit_preset(preset: Preset, setting: Setting) -> Preset:
    """``preset``, shortened for the digits."""
    if setting.dataset != "digits":
        return preset
    return replace(
        preset,
        iterations=min(preset.iterations, DIGITS_ITERATIONS),
        real_batch=min(preset.real_batch, DIGITS_BATCH),
        pool=min(preset.pool, DIGITS_POOL),
        pool_epochs=DIGITS_POOL_EPOCHS,
        ipm=preset.ipm or 1,  # measuring accuracies would take minutes
    )


def change_optimizer(preset: Preset, optimizer: str, setting: Setting) -> Preset:
    """``preset`` with another optimiser: its rates mean nothing to that one."""
    if optimizer == preset.optimizer:
        return preset
    adam, shared = optimizer == "adam", shared_preset(setting)
    return replace(
        preset,
        optimizer=optimizer,
        lr_img=ADAM_LR if adam else shared.lr_img,
        momentum=ADAM_MOMENTUM if adam else shared.momentum,
    )


def store_as_basis(preset: Preset, setting: Setting) -> Preset:
    """``preset`` with each class stored as coefficients of a basis instead of pixels.

    The numbers are of two kinds, whose gradients differ in size: Adam steps them. A single image
    per class has room for a few components of a tile's side, more have it for whole ones. Without
    calibration, which gains on tiles and loses here, networks are random, as the method has them.
    Found on Fashion-MNIST's held-out images at 1, 10 and 50 images per class.
    """
    whole = setting.ipc > 1
    images = min(BASIS_IMAGES * setting.ipc, max(MOST_DECODED, setting.ipc))
    if preset.optimizer != "adam":
        adam = change_optimizer(preset, "adam", setting)
        preset = replace(adam, lr_img=adam.lr_img / math.sqrt(setting.ipc))
    return replace(
        preset,
        factor=1 if whole else preset.factor,
        decode="basis",
        decoded=images if whole else BASIS_TILES,
        add={term: weight for term, weight in preset.add.items() if term != "calibration"},
    )


def in_pixel_units(rate: float, setting: Setting) -> float:
    """A learning rate published for normalised pixels, for those in [0, 1].

    DM, DC, DSA, CAFE, DataDAM, IDM and DDM step images that are already divided by the data set's
    standard deviation; the same step in [0, 1] takes its square times the rate.
    """
    std = dataset_info(setting.dataset).std
    return rate * (sum(std) / len(std)) ** 2


def dm_preset(setting: Setting) -> Preset:
    """The preset of DM and of the methods that take its settings over."""
    strategy = f"one:{dsa_strategy(setting.dataset)}"
    return replace(DM, augment=strategy, lr_img=in_pixel_units(1.0, setting))


def datadam_preset(setting: Setting) -> Preset:
    """DataDAM (arXiv 2310.00093): as DM, fewer iterations, which it varies from 8,000 to 20,000."""
    batch = 64 if setting.high_resolution else 256
    return replace(dm_preset(setting), iterations=8_000, real_batch=batch)


def cafe_preset(setting: Setting) -> Preset:
    """CAFE (arXiv 2203.01531): 2,000 networks, of which each serves 10 steps or more.

    The public code counts networks and halves the rate at 1,200, 1,600 and 1,800 of them; here it
    is halved at the same shares of the fewest steps that they serve.
    """
    steps, rate = 2_000 * 10, in_pixel_units(0.1, setting)
    return replace(
        DM, iterations=steps, ipm=BY_ACCURACY, lr_img=rate, lr_schedule="halved", augment="none"
    )


def idm_preset(setting: Setting) -> Preset:
    """IDM (arXiv 2307.09742); with one image per class it sees 5,000 real images in each step."""
    batch = min(5_000, CLASS_SIZES.get(setting.dataset, 5_000)) if setting.ipc == 1 else 256
    rate = in_pixel_units(0.2, setting)
    return replace(dm_preset(setting), factor=2, init="mix", real_batch=batch, lr_img=rate)


def dc_preset(setting: Setting) -> Preset:
    """DC (arXiv 2006.05929): 1,000 networks, each for as many steps as images per class.

    Published for 1 to 50 images per class; of more, a network serves 50 steps.
    """
    steps = min(setting.ipc, 50)
    rate = in_pixel_units(0.1, setting)
    return replace(DM, iterations=1_000 * steps, ipm=steps, lr_img=rate, augment="none")


def dsa_preset(setting: Setting) -> Preset:
    """DSA (arXiv 2102.08259): DC with one operation of the augmentation per draw."""
    return replace(dc_preset(setting), augment=f"one:{dsa_strategy(setting.dataset)}")


def idc_preset(setting: Setting) -> Preset:
    """IDC (arXiv 2205.14959): 2,000 networks (from 65 px on 500), each for 100 steps.

    Numbers are those of the public code (``misc/reproduce.py``, ``argument.py``), in which the
    learning rate grows with the images per class and with the area of the image; other data sets
    have those of the most similar one. On ImageNet-10 and ImageNet-100 a network starts from one of
    ten that were trained before, for 10 and 5 epochs, as the code's README says.
    """
    high, name = setting.high_resolution, setting.dataset
    many = high and (dataset_info(name).num_classes or 0) >= MANY_CLASSES
    base = 224 if high else 28 if name == "mnist" else 32  # px
    lr = (1e-3 if many else 3e-3) if high else IDC_RATES.get(name, 5e-3)
    return Preset(
        iterations=100 * (500 if high else 2_000),
        ipm=100,
        lr_img=lr * setting.ipc / 10 * (setting.size / base) ** 2,
        factor=3 if high else 2,
        real_batch=128 if many else 64,
        augment="color_crop" if name == "mnist" else Preset.augment,
        pretrained=name in IDC_EPOCHS,
        pool_epochs=IDC_EPOCHS.get(name, Preset.pool_epochs),
    )


def dance_preset(setting: Setting) -> Preset:
    """DANCE (arXiv 2406.01063)."""
    lr = (0.1 if setting.high_resolution else 0.01) * setting.ipc
    return Preset(lr_img=lr, augment=f"one:{dsa_strategy(setting.dataset)}", ipm=1)


def ncfm_preset(setting: Setting) -> Preset:
    """NCFM (arXiv 2502.20653); its AdamW decays no pixels here, where 0 is black, not the mean."""
    batch = min(1_024, CLASS_SIZES.get(setting.dataset, 1_024))
    return Preset(
        iterations=20_000,
        optimizer="adam",
        lr_img=1e-3,
        momentum=ADAM_MOMENTUM,
        real_batch=batch,
        ipm=1,
    )


def bptt_preset(setting: Setting) -> Preset:
    """RaT-BPTT (arXiv 2311.07025), for the last part of a condensation: ours but for Adam.

    ``pool`` counts the networks in training, whose augmentation this is; at more than one image per
    class each trains for longer. Found on Fashion-MNIST's held-out images, on sets of a basis of 1
    and 10 images per class; at 50 they gain as well.
    """
    classes = dataset_info(setting.dataset).num_classes or 10
    return Preset(
        iterations=BPTT_ITERATIONS,
        optimizer="adam",
        lr_img=BPTT_RATE / math.sqrt(setting.ipc),
        lr_schedule="cosine",
        momentum=ADAM_MOMENTUM,
        average=0.98,
        pool=8 if setting.ipc == 1 else 4,
        real_batch=max(1, BPTT_REAL // classes),
        augment=dsa_strategy(setting.dataset),
    )


def dsa_strategy(dataset: str) -> str:
    """All operations of DSA; digits are not flipped (arXiv 2102.08259)."""
    flip = "flip_" if dataset_info(dataset).flips else ""
    return f"color_crop_cutout_{flip}scale_rotate"


def shared_preset(setting: Setting) -> Preset:
    """The preset of M3D (``--preset m3d``), which compares methods under the same settings.

    The loss averages over a class's images, so its gradient in a pixel shrinks as 1/ipc. The
    learning rate grows with ipc to compensate, as in the configurations derived from the paper's
    code; the paper's own is the same for every ipc (``--preset paper``).
    """
    preset = HIGH_RESOLUTION if setting.high_resolution else LOW_RESOLUTION
    return replace(preset, lr_img=preset.lr_img * setting.ipc)


def strong_preset(setting: Setting) -> Preset:
    """The most accurate settings found on Fashion-MNIST (``--preset strong``).

    Ridge regression beside the method's loss, and the images averaged over the steps. A class is
    stored as coefficients of a basis that the classes share, stepped by Adam; from ``STRONG_WHOLE``
    images on, or from 65 px on, as pixels at half the learning rate, with calibration besides,
    under networks of a pool. The terms were first chosen on runs whose test accuracies were seen,
    everything else on held-out training images.
    """
    shared = shared_preset(setting)
    low = not setting.high_resolution
    whole = low and setting.ipc >= STRONG_WHOLE
    strong = replace(
        shared,
        decode="basis" if low and not whole else "tiles",
        factor=1 if whole else shared.factor,
        iterations=min(shared.iterations, STRONG_ITERATIONS),
        lr_img=min(shared.lr_img / 2, STRONG_RATE),
        average=0.95,
        pool=5,
        pool_epochs=0.35,
        pool_stages=1,
        add={"ridge": 1.0, "calibration": 0.1},
    )
    if not low or setting.ipc < STRONG_MANY:
        return strong
    # 100 iterations gained what 300 did, with a real batch of 32 nothing; such a pool another 0.2
    return replace(strong, iterations=300, real_batch=256, pool_epochs=1.0, pool_stages=3)


def network_for(dataset: str, size: int) -> str:
    """The network that the literature condenses with at ``size`` pixels."""
    if dataset_info(dataset).kind == "imagenet" or size > 128:
        return "resnetap10"
    return "convnet3" if size < 64 else "convnet4" if size < 128 else "convnet5"


def cutmix_probability(size: int) -> float:
    """Share of the batches that IDC (arXiv 2205.14959) mixes when a network trains."""
    return 0.5 if size < HIGH_RESOLUTION_SIDE else 1.0
