"""Every method class by class in plain torch: what benchmarks time and tests compare with.

One forward pass for the real and one for the synthetic images of each class, and autograd. Networks
are ConvNets: ``blocks``, four layers each (convolution, norm, ReLU, pool), and a ``head``. Written
from the papers that ``m3d_fast.methods`` names; DDM's maps are averaged over the images before MM
compares them, as in its public code.
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


def read_maps(network: nn.Module, images: Tensor, layer: int) -> tuple[list[Tensor], Tensor]:
    """Maps ``(B, C, h, w)`` after the layer of this number of every block, and last features."""
    maps = []
    for number, module in enumerate(network.blocks):
        images = module(images)
        if number % 4 == layer:
            maps.append(images)
    return maps, images.flatten(1)


def embed(network: nn.Module, images: Tensor) -> Tensor:
    return network.blocks(images).flatten(1)


def match_means(x: Tensor, y: Tensor) -> Tensor:
    return ((x.mean(0) - y.mean(0)) ** 2).sum()


def classify(network: nn.Module, features: Tensor, label: int) -> Tensor:
    return F.cross_entropy(network.head(features), torch.full((len(features),), label))


def calibrate(network: nn.Module, images: Tensor, label: int) -> Tensor:
    return classify(network, embed(network, images), label)


def dm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        target = embed(networks.embedding, real)
    return [match_means(target, embed(networks.embedding, synthetic))]


def moments(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        x = embed(networks.embedding, real)
    y = embed(networks.embedding, synthetic)
    return [match_means(x**power, y**power) for power in (1, 2, 3)]


def m3d(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        target = embed(networks.embedding, real)
    return [stacked_loss(target, embed(networks.embedding, synthetic))]


def moments_distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """MM: mean and variance per channel of the maps averaged over the images."""
    losses = []
    for x, y in zip(real, synthetic, strict=True):
        x, y = x.mean(0).flatten(1), y.mean(0).flatten(1)
        spreads = x.var(1, unbiased=False), y.var(1, unbiased=False)
        losses.append((F.mse_loss(x.mean(1), y.mean(1)) + F.mse_loss(*spreads)) / 2)
    return torch.stack(losses).mean()


def correlations_distance(real: list[Tensor], synthetic: list[Tensor]) -> Tensor:
    """CM: Grams averaged over the images."""
    losses = []
    for maps in zip(real, synthetic, strict=True):
        x, y = (layer.flatten(2) for layer in maps)
        grams = [(f @ f.transpose(1, 2)).mean(0) / f[0].numel() for f in (x, y)]
        losses.append((grams[0] - grams[1]).square().sum())
    return torch.stack(losses).mean()


def diversity(features: Tensor) -> Tensor:
    """ICD: minus the divergences from the mean of the nearest fifth."""
    count = len(features)
    nearest = max(1, min(count - 1, round(0.2 * count)))
    distances = torch.cdist(features, features).detach().fill_diagonal_(torch.inf)
    loss = features.new_zeros(())
    for own, row in zip(features, distances, strict=True):
        centre = features[row.topk(nearest, largest=False).indices].mean(0)
        loss = loss - F.kl_div(centre.log_softmax(0), own.softmax(0), reduction="sum")
    return loss


def ddm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    with torch.no_grad():
        targets, target = read_maps(networks.embedding, real, 1)
    maps, features = read_maps(networks.embedding, synthetic, 1)
    return [
        1e4 * moments_distance(targets, maps),
        1e4 * correlations_distance(targets, maps),
        10 * diversity(features),
        match_means(target, features),
    ]


def datadam(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    return datadam_of_power(1, networks, real, synthetic, label)


def datadam_of_power(
    power: float, networks: Networks, real: Tensor, synthetic: Tensor, label: int
) -> list[Tensor]:
    def attend(maps: Tensor) -> Tensor:
        rows = (maps.abs() ** power).sum(1).flatten(1)
        return (rows / (rows**2).sum(1, keepdim=True).sqrt()).mean(0)

    with torch.no_grad():
        targets, target = read_maps(networks.embedding, real, 2)
    maps, features = read_maps(networks.embedding, synthetic, 2)
    layers = [
        ((attend(x) - attend(y)) ** 2).sum() for x, y in zip(targets[:-1], maps[:-1], strict=True)
    ]
    means = match_means(target, features)
    return [100 * sum(layers), 100 * 0.01 * means]


def idm(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    return idm_matching(match_means, networks, real, synthetic, label)


def idm_by_mmd(networks: Networks, real: Tensor, synthetic: Tensor, label: int) -> list[Tensor]:
    return idm_matching(stacked_loss, networks, real, synthetic, label)


def idm_matching(
    match: Callable[[Tensor, Tensor], Tensor],
    networks: Networks,
    real: Tensor,
    synthetic: Tensor,
    label: int,
) -> list[Tensor]:
    with torch.no_grad():
        target = embed(networks.embedding, real)
    features = embed(networks.embedding, synthetic)
    weight = 0.5 * 100 * networks.accuracy
    return [match(target, features), weight * classify(networks.embedding, features, label)]


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

    def read(images: Tensor) -> list[Tensor]:
        maps, features = read_maps(network, images, 2)
        return [*maps, features]

    with torch.no_grad():
        targets = [read(x) for x in real]
    maps = [read(y) for y in synthetic]
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


def loop_losses(
    loss: ClassLoss, networks: Networks, real: Tensor, synthetic: Tensor, labels: list[int]
) -> Tensor:
    """Terms ``(C, T)`` of images ``(C, n, ...)`` and ``(C, m, ...)``, class by class."""
    classes = zip(real, synthetic, labels, strict=True)
    return torch.stack([torch.stack(loss(networks, x, y, label)) for x, y, label in classes])
