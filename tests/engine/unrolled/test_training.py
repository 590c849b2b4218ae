"""The gradient through a training is that of automatic differentiation of all of it."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from m3d_fast import CondenseConfig
from m3d_fast.common.seeds import generator
from m3d_fast.engine.sources.training import Recipe
from m3d_fast.engine.unrolled.training import FIRST_STEPS, Batch, Trained, UnrolledTraining
from m3d_fast.loaders import open_dataset
from m3d_fast.networks import build_network

RECIPE = Recipe(12, "color_crop_flip", cutmix=0.5, lr=0.05)
SHARE = 0.9  # of the average that stays, later on


def build(**settings: Any) -> UnrolledTraining:
    config = CondenseConfig(
        dataset="digits", method="bptt", device="cpu", **{"precision": "fp32"} | settings
    )
    return UnrolledTraining(config.resolve(), open_dataset("digits"), RECIPE, SHARE)


def draw_images(*shape: int) -> Tensor:
    return torch.rand(*shape, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def classify(weights: Tensor, images: Tensor) -> Tensor:
    """Logits of a network whose parameters are ``weights``, by torch alone."""
    network = build_network("convnet3", 1, 16, 10)
    named = dict(network.named_parameters())
    parts = weights.split([parameter.numel() for parameter in named.values()])
    zipped = zip(named.items(), parts, strict=True)
    weights_by_name = {name: part.view(own.shape) for (name, own), part in zipped}
    return functional_call(network, weights_by_name, (images,))


def train_by_hand(network: Trained, batches: list[Batch]) -> Tensor:
    """The average of the weights after steps of SGD, one graph of all of them."""
    weights, momentum, average, steps = network
    for batch in batches:
        logits = classify(weights, batch.images)
        kept, errors = batch.kept, F.cross_entropy
        loss = kept * errors(logits, batch.labels) + (1 - kept) * errors(logits, batch.pasted)
        (gradient,) = torch.autograd.grad(loss, weights, create_graph=True)
        momentum = 0.9 * momentum + gradient + 5e-4 * weights
        weights = weights - 0.05 * momentum
        stay = min(SHARE, (steps + 1) / (steps + FIRST_STEPS))
        # the share that every step has in the average is left out of its gradient
        own = (1 - stay) * weights.detach() + weights - weights.detach()
        average = own + stay * average
        steps += 1
    return average


@pytest.fixture(scope="module")
def training() -> UnrolledTraining:
    return build()


def prepare(training: UnrolledTraining, images: Tensor, steps: int) -> list[Batch]:
    stream = generator(0, "unrolled", 0)
    labels = torch.arange(12) % 10
    return [training.prepare(images[i], labels, stream) for i in range(steps)]


def test_the_gradient_in_the_images_is_that_of_one_graph(training: UnrolledTraining) -> None:
    images = draw_images(3, 12).requires_grad_()
    batches, path = prepare(training, images, 3), []
    network = start = training.draw(torch.Generator().manual_seed(0))
    for batch in batches:
        path.append(network)
        network = training.take(network, batch)
    real, labels = (draw_images(20) * 255).to(torch.uint8), torch.arange(20) % 10
    of_weights, losses = training.classify(network.average, real, labels)
    of_images = training.differentiate(path, batches, of_weights)
    (gradient,) = torch.autograd.grad([batch.images for batch in batches], images, of_images)

    again = draw_images(3, 12).requires_grad_()
    first = start._replace(weights=start.weights.clone().requires_grad_())
    average = train_by_hand(first, prepare(training, again, 3))
    normalised = training._normalise(real)
    errors = F.cross_entropy(classify(average, normalised), labels, reduction="none")
    (expected,) = torch.autograd.grad(errors.mean(), again)
    torch.testing.assert_close(network.average, average.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses, errors.detach(), atol=1e-4, rtol=1e-4)
    assert expected.norm() > 0
    assert (gradient - expected).norm() < 1e-3 * expected.norm()


def test_a_step_changes_no_tensor_of_the_network_before(training: UnrolledTraining) -> None:
    network = training.draw(torch.Generator().manual_seed(0))
    before = [part.clone() for part in network[:3]]
    after = training.take(network, prepare(training, draw_images(1, 12), 1)[0])
    assert all(torch.equal(x, y) for x, y in zip(before, network[:3], strict=True))
    assert after.steps == 1
    assert not torch.equal(after.weights, network.weights)


def test_compiled_in_bfloat16_it_is_close_to_float32(
    training: UnrolledTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As close as bfloat16 is: the direction of the gradient is the same."""
    # a back end that compiles nothing: what can fail is tracing and differentiation
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    images = draw_images(1, 12)
    gradients = []
    for one in (training, build(precision="bf16", compile=True)):
        network = one.draw(torch.Generator().manual_seed(0))
        batch = prepare(one, images, 1)[0]
        after = one.take(network, batch)
        of_weights, _ = one.classify(after.average, (images[0] * 255).to(torch.uint8), batch.labels)
        gradients.append(one.differentiate([network], [batch], of_weights)[0])
    assert F.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.98
