"""How networks are trained on a condensed set: the protocols of the literature, as data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..common.checks import check_name
from ..loaders import dataset_info
from ..presets import HIGH_RESOLUTION_SIDE, cutmix_probability, dsa_strategy

HARD, SOFT = "hard", "soft"  # kinds of labels; results of one are no results of the other
IMAGENET, RESIZED_CROP = "imagenet", "resized-crop"  # augmentations besides DSA's strategies


@dataclass(frozen=True)
class Protocol:
    """Training of a network on a condensed set.

    Attributes:
        epochs: passes over the decoded set.
        repeats: networks trained.
        lr: learning rate of the network, at the beginning.
        weight_decay: of the network; of AdamW, which decays the weights alone, not biases or norms.
        batch_size: images per step.
        augment: a DSA strategy with one draw per image, "imagenet" (IDC's) or "resized-crop".
        cutmix: probability of mixing a batch.
        momentum: of SGD.
        milestones: fractions of the epochs after which the learning rate is multiplied by
            ``gamma``; of schedule "steps".
        gamma: as above.
        name: of the protocol.
        optimizer: "sgd" or "adamw" (betas 0.9 and 0.999).
        schedule: "steps", or "cosine" to 0 after the last epoch.
        loss: "cross-entropy" with hard labels; of a teacher "kl", the divergence of the student
            from its probabilities, or "mse", the mean squared difference of logits.
        temperature: by which the logits are divided, of loss "kl".
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
    name: str = "idc"
    optimizer: str = "sgd"
    schedule: str = "steps"
    loss: str = "cross-entropy"
    temperature: float = 1.0

    @property
    def labels(self) -> str:
        """The kind of labels: "hard", or "soft" where a teacher gives them."""
        return HARD if self.loss == "cross-entropy" else SOFT

    def find_rate(self, epoch: int, epochs: int) -> float:
        """Learning rate of an epoch, counted from 0, of ``epochs``."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        passed = sum(epoch >= int(fraction * epochs) for fraction in self.milestones)
        return self.lr * self.gamma**passed


# (decoded images per class, epochs): up to this many images an ImageNet subset is trained this long
IMAGENET_EPOCHS = ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500))
IMAGENET_EPOCHS_BEYOND = 300

MANY_CLASSES = 100


@dataclass(frozen=True)
class Subject:
    """What a protocol depends on.

    Attributes:
        dataset: name of the data set.
        size: image side in pixels.
        decoded_per_class: images of a class that networks train on.
        num_classes: of the data set.
    """

    dataset: str
    size: int
    decoded_per_class: int
    num_classes: int

    @property
    def repeats(self) -> int:
        """Networks that IDC trains."""
        return 10 if self.size < HIGH_RESOLUTION_SIDE else 3

    @property
    def flip(self) -> str:
        """The flip in a DSA strategy; digits have none."""
        return "flip_" if dataset_info(self.dataset).flips else ""


def _idc(subject: Subject) -> Protocol:
    """IDC (arXiv 2205.14959), which M3D uses.

    As its code has it, CIFAR-100 is cropped and flipped only, and the epochs of ImageNet subsets
    of 100 classes, two thirds of the others', are rounded down to hundreds.
    """
    if subject.size < HIGH_RESOLUTION_SIDE:
        whole = f"color_crop_{subject.flip}scale_rotate"
        return Protocol(
            epochs=1000,
            repeats=subject.repeats,
            lr=0.01,
            weight_decay=5e-4,
            batch_size=64,
            augment="crop_flip" if subject.dataset == "cifar100" else whole,
            cutmix=cutmix_probability(subject.size),
        )
    decoded = subject.decoded_per_class
    limits = (epochs for limit, epochs in IMAGENET_EPOCHS if decoded <= limit)
    epochs = next(limits, IMAGENET_EPOCHS_BEYOND)
    many = subject.num_classes >= MANY_CLASSES
    return Protocol(
        epochs=epochs * 2 // 3 // 100 * 100 if many else epochs,
        repeats=subject.repeats,
        lr=0.1 if many else 0.01,
        weight_decay=1e-4 if many else 5e-4,
        batch_size=128 if many else 64,
        augment=IMAGENET,
        cutmix=cutmix_probability(subject.size),
    )


def _dm(subject: Subject) -> Protocol:
    """DM (arXiv 2110.04181), as in its published code.

    20 networks, SGD with rate 0.01, divided by 10 once, 1,000 epochs of batches of 256, hard labels
    without CutMix, one operation of DSA per draw. The code draws the operation once per batch, we
    per image; it divides the rate two epochs after the half, and forgets the momentum then.
    """
    return Protocol(
        epochs=1000,
        repeats=20,
        lr=0.01,
        weight_decay=5e-4,
        batch_size=256,
        augment=f"one:{dsa_strategy(subject.dataset)}",
        cutmix=0.0,
        milestones=(0.5,),
        gamma=0.1,
        name="dm",
    )


def _hard(subject: Subject) -> Protocol:
    """Hard labels as the benchmark rethinkdc 0.3.2 has them (arXiv 2502.06434).

    300 epochs of batches of 128, AdamW 0.001 with weight decay 0.01, cosine, a random crop of 8 to
    100 % of the area, resized, and a flip. It is about ImageNet-1K at 224 px: up to 64 px we crop
    by up to an eighth of the side instead, as usual there. The number of networks is IDC's.
    """
    low = subject.size < HIGH_RESOLUTION_SIDE
    flip = subject.flip.removesuffix("_")
    return Protocol(
        epochs=300,
        repeats=subject.repeats,
        lr=1e-3,
        weight_decay=0.01,
        batch_size=128,
        augment="_".join(filter(None, ("crop", flip))) if low else RESIZED_CROP,
        cutmix=0.0,
        momentum=0.0,
        milestones=(),
        gamma=1.0,
        name="hard",
        optimizer="adamw",
        schedule="cosine",
    )


def _soft(subject: Subject) -> Protocol:
    """Soft labels as rethinkdc 0.3.2 has them: :func:`_hard`, every batch mixed, and a teacher.

    The teacher sees the same augmented and mixed images; the loss is the Kullback-Leibler
    divergence of probabilities at temperature 20, not multiplied by its square. Stored labels
    (:mod:`.soft_labels`) may take the place of the teacher.
    """
    hard = _hard(subject)
    return replace(hard, name="soft", cutmix=1.0, loss="kl", temperature=20.0)


def _kd(subject: Subject) -> Protocol:
    """Knowledge distillation: :func:`_soft` with the mean squared difference of logits as loss.

    That students learn the logits of a teacher at work is published in several forms; this
    combination is ours.
    """
    return replace(_soft(subject), name="kd", loss="mse", temperature=1.0)


PROTOCOLS: dict[str, Callable[[Subject], Protocol]] = {
    "idc": _idc,
    "dm": _dm,
    "hard": _hard,
    "soft": _soft,
    "kd": _kd,
}


def protocol_for(
    dataset: str, size: int, decoded_per_class: int, num_classes: int, name: str = "idc"
) -> Protocol:
    """The evaluation protocol ``name`` for ``dataset`` at ``size`` pixels.

    Args:
        dataset: name of the data set.
        size: image side in pixels.
        decoded_per_class: images of a class that networks train on.
        num_classes: of the data set.
        name: idc, dm, hard, soft or kd.

    Raises:
        UserError: for an unknown name.
    """
    check_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name](Subject(dataset, size, decoded_per_class, num_classes))
