"""Protocols: tables of the literature; schedules and optimisers against those of torch."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from m3d_fast.common.errors import UserError
from m3d_fast.evaluation.optimizers import build_optimizer
from m3d_fast.evaluation.protocols import PROTOCOLS, Protocol, protocol_for
from m3d_fast.networks import build_network


def describe(protocol: Protocol, *names: str) -> tuple[object, ...]:
    return tuple(getattr(protocol, name) for name in names)


OF_SGD = ("epochs", "lr", "weight_decay", "momentum", "batch_size", "cutmix", "repeats", "gamma")
OF_ADAMW = ("epochs", "lr", "weight_decay", "batch_size", "cutmix", "optimizer", "schedule", "loss")


def test_idc_is_that_of_the_papers() -> None:
    low = protocol_for("fashionmnist", 28, 4, 10)
    assert describe(low, *OF_SGD) == (1000, 0.01, 5e-4, 0.9, 64, 0.5, 10, 0.2)
    assert low.augment == "color_crop_flip_scale_rotate"
    assert "flip" not in protocol_for("mnist", 28, 4, 10).augment
    many = protocol_for("cifar100", 32, 4, 100)
    assert (many.augment, many.epochs, many.lr, many.cutmix) == ("crop_flip", 1000, 0.01, 0.5)
    ten = protocol_for("imagenet10", 224, 90, 10)
    assert describe(ten, *OF_SGD) == (1000, 0.01, 5e-4, 0.9, 64, 1.0, 3, 0.2)
    hundred = protocol_for("imagenet100", 224, 90, 100)
    assert describe(hundred, *OF_SGD) == (600, 0.1, 1e-4, 0.9, 128, 1.0, 3, 0.2)


def test_epochs_of_imagenet_subsets_fall_with_their_size() -> None:
    """Two thirds for 100 classes, rounded down to hundreds."""
    decoded = (1, 9, 45, 90, 450, 900)

    def epochs(name: str, classes: int) -> list[int]:
        return [protocol_for(name, 224, count, classes).epochs for count in decoded]

    assert epochs("imagenet10", 10) == [3000, 2000, 1500, 1000, 500, 300]
    assert epochs("imagenet100", 100) == [2000, 1300, 1000, 600, 300, 200]


def test_dm_is_that_of_its_code() -> None:
    protocol = protocol_for("cifar10", 32, 10, 10, "dm")
    assert describe(protocol, *OF_SGD) == (1000, 0.01, 5e-4, 0.9, 256, 0.0, 20, 0.1)
    assert protocol.milestones == (0.5,)
    assert protocol.augment == "one:color_crop_cutout_flip_scale_rotate"
    assert "flip" not in protocol_for("svhn", 32, 10, 10, "dm").augment


@pytest.mark.parametrize(
    ("name", "cutmix", "loss", "labels"),
    [
        ("hard", 0.0, "cross-entropy", "hard"),
        ("soft", 1.0, "kl", "soft"),
        ("kd", 1.0, "mse", "soft"),
    ],
)
def test_hard_soft_and_kd_are_those_of_rethinkdc(name, cutmix, loss, labels) -> None:
    for dataset, size, augment in [
        ("imagenet10", 224, "resized-crop"),
        ("cifar10", 32, "crop_flip"),
        ("mnist", 28, "crop"),
    ]:
        protocol = protocol_for(dataset, size, 10, 10, name)
        expected = (300, 1e-3, 0.01, 128, cutmix, "adamw", "cosine", loss)
        assert describe(protocol, *OF_ADAMW) == expected
        assert (protocol.augment, protocol.labels) == (augment, labels)
        assert protocol.temperature == (20.0 if name == "soft" else 1.0)


def test_every_protocol_has_its_name_and_others_are_refused() -> None:
    for name in PROTOCOLS:
        assert protocol_for("cifar10", 32, 4, 10, name).name == name
    assert protocol_for("cifar10", 32, 4, 10).name == "idc"
    with pytest.raises(UserError, match="protocol: 'sofd' is not known; did you mean soft"):
        protocol_for("cifar10", 32, 4, 10, "sofd")


@pytest.mark.parametrize("epochs", [1, 7, 12])
@pytest.mark.parametrize("name", ["idc", "dm", "hard"])
def test_rates_are_those_of_torchs_schedules(name: str, epochs: int) -> None:
    protocol = protocol_for("cifar10", 32, 4, 10, name)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], protocol.lr)
    if name == "hard":
        schedule = LambdaLR(optimizer, lambda epoch: 0.5 * (1 + math.cos(math.pi * epoch / epochs)))
    else:
        milestones = [int(part * epochs) for part in protocol.milestones]
        schedule = MultiStepLR(optimizer, milestones, protocol.gamma)
    for epoch in range(epochs):
        assert protocol.find_rate(epoch, epochs) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_steps_of_adamw_are_torchs() -> None:
    """On the same gradients; weights decay, biases and norms do not; the rest stays as it is."""
    ours = build_network("resnet10", 1, 16, 4)
    plain, protocol = copy.deepcopy(ours), protocol_for("mnist", 28, 4, 10, "hard")
    named = list(plain.named_parameters())
    decayed = [p for name, p in named if p.ndim in (2, 4)]
    others = [p for name, p in named if p.ndim == 1]
    assert len(decayed) + len(others) == len(named)
    reference = torch.optim.AdamW(
        [{"params": decayed}, {"params": others, "weight_decay": 0.0}], weight_decay=0.01
    )
    optimizer, without = build_optimizer(ours, protocol), "layer1.0.conv1.weight"
    for rate in (1e-3, 5e-4, 1e-2):
        for (name, theirs), mine in zip(named, ours.parameters(), strict=True):
            theirs.grad = None if name == without else torch.randn_like(theirs)
            mine.grad = None if theirs.grad is None else theirs.grad.clone()
        for group in reference.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            optimizer.step(torch.tensor(rate))
        reference.step()
    for mine, (_, theirs) in zip(ours.parameters(), named, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-6)
