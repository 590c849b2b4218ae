"""Every method class by class in plain torch: what benchmarks time and tests compare with.

One forward pass for the real and one for the synthetic images of each class, and autograd. Networks
are ConvNets: ``blocks``, four layers each (convolution, norm, ReLU, pool), and a ``head``. Written
from the papers that ``m3d_fast.methods`` names.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.published import stacked_loss


class Networks(NamedTuple):
    """What the losses of an iteration read.

    Attributes:
        embedding: the network of the iteration.
        expert: a trained one.
        accuracy: of the embedding network's training, 0 to 1.
        frequencies: ``(F, D)``.
    """

    embedding: nn.Module
    expert: nn.Module
    accuracy: Tensor
    frequencies: Tensor


# networks, real and synthetic images of one class, its label: the terms
ClassLoss = Callable[[Networks, Tensor, Tensor, int], list[Tensor]]


def read_maps(network: nn.Module, images: Tensor, layer: int) -> list[Tensor]:
    """Maps ``(B, C, h, w)`` after the layer of this number of every block."""
    maps = []
    for number, module in enumerate(network.blocks):
        images = module(images)
        if number % 4 == layer:
            maps.append(images)
    return maps


def embed(network: nn.Module, images: Tensor) -> Tensor:
    return network.blocks(images).flatten(1)


def match_means(x: Tensor, y: Tensor) -> Tensor:
    return ((x.mean(0) - y.mean(0)) ** 2).sum()


def calibrate(network: nn.Module, images: Tensor, label: int) -> Tensor:
    return F.cross_entropy(network(images), torch.full((len(images),), label))


def dm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        target = embed(networks.embedding, real)
    return [match_means(target, embed(networks.embedding, synthetic))]


def m3d(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        target = embed(networks.embedding, real)
    return [stacked_loss(target, embed(networks.embedding, synthetic))]


def datadam(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    return datadam_of_power(1, networks, real, synthetic, label)


def datadam_of_power(
    power: float, networks: Networks, real: Tensor, synthetic: Tensor, label: int
) -> list[Tensor]:
    def attend(maps: Tensor) -> Tensor:
        rows = (maps.abs() ** power).sum(1).flatten(1)
        return (rows / (rows**2).sum(1, keepdim=True).sqrt()).mean(0)

    with torch.no_grad():
        targets = read_maps(networks.embedding, real, 2)
    maps = read_maps(networks.embedding, synthetic, 2)
    layers = [
        ((attend(x) - attend(y)) ** 2).sum() for x, y in zip(targets[:-1], maps[:-1], strict=True)
    ]
    pool = networks.embedding.blocks[-1]
    means = match_means(pool(targets[-1]).flatten(1), pool(maps[-1]).flatten(1))
    return [100 * sum(layers), 100 * 0.01 * means]


def idm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    errors = calibrate(networks.embedding, synthetic, label)
    weight = 0.5 * 100 * networks.accuracy
    return [*dm(networks, real, synthetic, label), weight * errors]


def idm_by_mmd(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    errors = idm(networks, real, synthetic, label)[1]
    return [*m3d(networks, real, synthetic, label), errors]


def dance(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    errors = calibrate(networks.expert, synthetic, label)
    return [*dm(networks, real, synthetic, label), errors]


def gradients_of(
    network: nn.Module, images: Tensor, label: int, dimensions: tuple[int, ...], create: bool
) -> list[Tensor]:
    """Gradients of the cross-entropy in weights of these numbers of dimensions."""
    weights = [weight for weight in network.parameters() if weight.ndim in dimensions]
    required = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_()
    errors = calibrate(network, images, label)
    gradients = torch.autograd.grad(errors, weights, create_graph=create)
    for weight, before in zip(weights, required, strict=True):
        weight.requires_grad_(before)
    return list(gradients)


def dc(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    targets = gradients_of(networks.embedding, real, label, (2, 4), False)
    ours = gradients_of(networks.embedding, synthetic, label, (2, 4), True)
    rows = []
    for x, y in zip(targets, ours, strict=True):
        for a, b in zip(x.flatten(1), y.flatten(1), strict=True):
            rows.append(1 - a @ b / ((a @ a).sqrt() * (b @ b).sqrt() + 1e-6))
    return [torch.stack(rows).sum()]


def idc(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    targets = gradients_of(networks.embedding, real, label, (4,), False)
    ours = gradients_of(networks.embedding, synthetic, label, (4,), True)
    return [sum((x - y).abs().sum() for x, y in zip(targets, ours, strict=True))]


def idc_by_squares(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    targets = gradients_of(networks.embedding, real, label, (4,), False)
    ours = gradients_of(networks.embedding, synthetic, label, (4,), True)
    return [sum(((x - y) ** 2).sum() for x, y in zip(targets, ours, strict=True))]


def ncfm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    return ncfm_weighted(0.5, 0.5, networks, real, synthetic, label)


def ncfm_weighted(
    alpha: float,
    beta: float,
    networks: Networks,
    real: Tensor,
    synthetic: Tensor,
    label: int,
) -> list[Tensor]:
    def characteristic(images: Tensor) -> Tensor:
        features = embed(networks.embedding, images)
        features = features / (features**2).sum(1, keepdim=True).sqrt()
        return torch.exp(1j * (networks.frequencies @ features.T)).mean(1)

    with torch.no_grad():
        f = characteristic(real)
    g = characteristic(synthetic)
    amplitudes = (f.abs() - g.abs()) ** 2
    phases = 2 * f.abs() * g.abs() * (1 - torch.cos(f.angle() - g.angle()))
    distances = (alpha * amplitudes + beta * phases).sqrt()
    return [300 * distances.mean(), calibrate(networks.expert, synthetic, label)]


def ncfm_exactly(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    x, y = (F.normalize(embed(networks.embedding, images)) for images in (real, synthetic))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-((a[:, None] - b[None]) ** 2).sum(2) / 2)

    mmd2 = kernel(x, x).mean() - 2 * kernel(x, y).mean() + kernel(y, y).mean()
    return [300 * (0.5 * mmd2).sqrt(), calibrate(networks.expert, synthetic, label)]


def cafe_losses(networks: Networks, real: Tensor, synthetic: Tensor) -> Tensor:
    """CAFE's terms ``(C, 2)``; it compares the classes with each other."""
    network = networks.embedding
    with torch.no_grad():
        targets = [[*read_maps(network, x, 2), embed(network, x)] for x in real]
    maps = [[*read_maps(network, y, 2), embed(network, y)] for y in synthetic]
    centres = torch.stack([part[-1].mean(0) for part in maps])
    losses = []
    for label, (x, y) in enumerate(zip(targets, maps, strict=True)):
        layers = [(a.mean(0) - b.mean(0)).square().sum() for a, b in zip(x, y, strict=True)]
        matched = layers[-1] + layers[-2] + 0.1 * sum(layers[:-2])
        logits = x[-1] @ centres.T
        own = torch.full((len(logits),), label)
        errors = F.cross_entropy(logits, own, reduction="sum")
        losses.append(torch.stack([matched, 0.01 * errors]))
    return torch.stack(losses)


METHODS: dict[str, ClassLoss] = {
    "m3d": m3d,
    "dm": dm,
    "datadam": datadam,
    "idm": idm,
    "dc": dc,
    "dsa": dc,
    "idc": idc,
    "dance": dance,
    "ncfm": ncfm,
}


def loop_losses(
    loss: ClassLoss, networks: Networks, real: Tensor, synthetic: Tensor, labels: list[int]
) -> Tensor:
    """Terms ``(C, T)`` of images ``(C, n, ...)`` and ``(C, m, ...)``, class by class."""
    classes = zip(real, synthetic, labels, strict=True)
    return torch.stack([torch.stack(loss(networks, x, y, label)) for x, y, label in classes])
