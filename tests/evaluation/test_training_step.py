"""The training step: a plain implementation of it, operations, waits for the device, graphs."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR
from torch.utils._python_dispatch import TorchDispatchMode

from m3d_fast.augment import augment, augment_imagenet, augment_resized_crop, parse_strategy
from m3d_fast.evaluation import trainer as trainer_module
from m3d_fast.evaluation import training_step
from m3d_fast.evaluation.protocols import Protocol, protocol_for
from m3d_fast.evaluation.trainer import Trainer
from m3d_fast.evaluation.training_step import TrainingStep
from m3d_fast.networks import build_network, initialise
from m3d_fast.synthetic import StoredImages

CPU = torch.device("cpu")
SOFT, TEMPERATURE = ("soft", "kd"), 2.0  # protocols with a teacher, and that of these tests
# operations that make the host wait for a device
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal"}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(
    protocol: Protocol, network: str, size: int, channels: int, teacher: nn.Module | None = None
) -> Trainer:
    return Trainer(
        build_network(network, channels, size, 4),
        protocol,
        (0.4,) * channels,
        (0.3,) * channels,
        device=CPU,
        precision="fp32",
        compile=False,
        teacher=teacher,
    )


def mix(images: Tensor, u: list[float], order: Tensor, probability: float) -> tuple[Tensor, float]:
    """CutMix pixel by pixel, and the share that is kept."""
    mixed, half, pasted = images.clone(), (1 - u[1]) ** 0.5 / 2, 0
    height, width = images.shape[-2:]
    for row in range(height):
        for column in range(width):
            inside = abs((row + 0.5) / height - u[2]) < half
            if inside and abs((column + 0.5) / width - u[3]) < half and u[0] < probability:
                mixed[:, :, row, column] = images[order, :, row, column]
                pasted += 1
    return mixed, 1 - pasted / (height * width)


def optimize_plainly(network: nn.Module, protocol: Protocol) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), protocol.lr, protocol.momentum, weight_decay=protocol.weight_decay
        )
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, protocol.lr, weight_decay=protocol.weight_decay)


def schedule_plainly(optimizer: torch.optim.Optimizer, protocol: Protocol) -> LRScheduler:
    if protocol.schedule == "cosine":
        return LambdaLR(optimizer, lambda e: (1 + math.cos(math.pi * e / protocol.epochs)) / 2)
    milestones = [int(part * protocol.epochs) for part in protocol.milestones]
    return MultiStepLR(optimizer, milestones, protocol.gamma)


def augment_plainly(batch: Tensor, protocol: Protocol, stream: torch.Generator) -> Tensor:
    """A batch, normalised and augmented."""
    count = len(batch)
    if protocol.augment == "imagenet":
        uniforms = torch.rand(count, 8, generator=stream)
        normals = torch.randn(count, 3, generator=stream)
        return (augment_imagenet(batch, uniforms, normals) - 0.4) / 0.3
    if protocol.augment == "resized-crop":
        uniforms = torch.rand(count, 5, generator=stream)
        return (augment_resized_crop(batch, uniforms) - 0.4) / 0.3
    uniforms, operations = (
        torch.rand(count, 12, generator=stream),
        parse_strategy(protocol.augment),
    )
    return augment(((batch - 0.4) / 0.3)[:, None], uniforms, operations)[:, 0]


def measure_loss(
    logits: Tensor, labels: Tensor, pasted: Tensor, kept: float, taught: Tensor | None, name: str
) -> Tensor:
    """The loss of a protocol by its definition; ``taught``: a teacher's logits."""
    if name == "kd":
        return (logits - taught).square().mean()
    if name == "soft":
        if taught is not None:
            p = torch.softmax(taught / TEMPERATURE, 1)
        else:
            p = kept * labels + (1 - kept) * pasted
        q = torch.softmax(logits / TEMPERATURE, 1)
        return (p * (p.clamp(min=1e-12) / q).log()).sum(1).mean()
    loss = kept * F.cross_entropy(logits, labels)
    return loss + (1 - kept) * F.cross_entropy(logits, pasted)


def train_plainly(
    trainer: Trainer, images: Tensor, labels: Tensor, initial, stream, teacher=None
) -> list[float]:
    """The protocol, written with torch.optim; on the CPU, in float32."""
    protocol, network, losses = trainer.protocol, trainer.network, []
    initialise(network, initial)
    network.train()
    optimizer = optimize_plainly(network, protocol)
    schedule = schedule_plainly(optimizer, protocol)
    for _ in range(protocol.epochs):
        for rows in torch.randperm(len(images), generator=stream).split(protocol.batch_size):
            batch = augment_plainly(images[rows], protocol, stream)
            u = torch.rand(4, generator=stream).tolist()
            order = torch.randperm(len(rows), generator=stream)
            batch, kept = mix(batch, u, order, protocol.cutmix)
            taught = None if teacher is None else teacher(batch).detach()
            here = labels[rows]
            loss = measure_loss(network(batch), here, here[order], kept, taught, protocol.name)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


CASES = {
    "small": ("fashionmnist", 16, 1, "convnet3", 2),
    "imagenet": ("imagenet10", 24, 3, "convnet3", 3),
    "batch-norm": ("cifar10", 16, 3, "resnet10", 2),
}
# of CASES, and the protocol
PLAIN = [
    ("small", "idc"),
    ("imagenet", "idc"),
    ("batch-norm", "idc"),
    ("small", "dm"),
    ("small", "hard"),
    ("imagenet", "soft"),
    ("small", "kd"),
]


def protocol_of(dataset: str, name: str = "idc", **given) -> Protocol:
    size = 224 if dataset.startswith("imagenet") else 28
    fixed = {"epochs": 6, "batch_size": 6}
    if name == "idc":
        fixed["cutmix"] = 1.0
    if name in SOFT:  # AdamW would enlarge the rounding of these small gradients
        fixed |= {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
    if name == "soft":
        fixed["temperature"] = TEMPERATURE
    return replace(protocol_for(dataset, size, 9, 10, name), **(fixed | given))


def build_teacher(channels: int, size: int) -> nn.Module:
    teacher = build_network("convnet3", channels, size, 4).eval().requires_grad_(False)
    initialise(teacher, seeded(3))
    return teacher


@pytest.mark.parametrize(("case", "name"), PLAIN)
def test_training_is_that_of_a_plain_implementation(case: str, name: str) -> None:
    """Over both milestones, with a last batch that is smaller than the others."""
    dataset, size, channels, network, factor = CASES[case]
    teacher = build_teacher(channels, size) if name in SOFT else None
    trainer = build(protocol_of(dataset, name), network, size, channels, teacher)
    stored = StoredImages(torch.rand(4, channels, size, size), factor)
    labels = torch.arange(4).repeat_interleave(factor**2)
    compare(trainer, stored, labels, teacher)


def compare(trainer: Trainer, stored: StoredImages, labels: Tensor, teacher=None) -> None:
    images, network = stored.decode(), trainer.network
    training = trainer.train(stored, labels, initial=seeded(1), stream=seeded(2))
    losses = [loss.item() for loss in training]
    # AdamW moves what has no gradient but noise, biases before a norm, as far as the other weights
    by_weights = trainer.protocol.optimizer == "sgd"

    def look() -> list[Tensor]:
        with torch.no_grad():
            return [p.clone() for p in network.parameters()] if by_weights else [network(images)]

    found = look()
    expected = train_plainly(trainer, images, labels, seeded(1), seeded(2), teacher)
    torch.testing.assert_close(losses, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(found, look(), atol=1e-3, rtol=0)


def test_stored_soft_labels_are_mixed_as_the_images() -> None:
    """Pruned ones too, of which most are 0."""
    trainer = build(protocol_of("fashionmnist", "soft"), "convnet3", 16, 1)
    labels = torch.rand(16, 4)
    labels[labels < 0.3] = 0
    labels[:, 0] += 0.1
    compare(trainer, StoredImages(torch.rand(4, 1, 16, 16), 2), labels / labels.sum(1)[:, None])


def test_a_set_too_large_to_decode_trains_the_same_network(monkeypatch) -> None:
    trainer = build(protocol_of("fashionmnist"), "convnet3", 16, 1)
    stored, labels = StoredImages(torch.rand(4, 1, 16, 16), 2), torch.arange(16) % 4

    def train() -> list[float]:
        training = trainer.train(stored, labels, initial=seeded(1), stream=seeded(2))
        return [loss.item() for loss in training]

    at_once = train()
    monkeypatch.setattr(trainer_module, "DECODED_SHARE", 0)
    assert trainer._prepare(stored) is stored
    assert train() == at_once


class Operations(TorchDispatchMode):
    """Counts what would be launched, and refuses what would wait for a device."""

    VIEWS = (
        *("view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "squeeze", "t"),
        *("transpose", "permute", "detach", "alias", "unbind", "split", "split_with_sizes"),
        *("as_strided", "empty", "empty_like", "new_empty_strided"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        assert name not in WAITS, f"{name} waits for the device"
        assert name != "lift_fresh", "a constant comes from the host"
        if name not in self.VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


# counted: 121 to 130, 136 to 150 and 118 to 127, with the network's own forward and backward
@pytest.mark.parametrize(
    ("case", "name", "most"),
    [("small", "idc", 140), ("imagenet", "idc", 170), ("small", "soft", 140)],
)
@pytest.mark.parametrize("decoded", [True, False])
def test_a_step_does_not_wait_and_has_few_operations(
    case: str, name: str, most: int, decoded: bool, monkeypatch
) -> None:
    dataset, size, channels, network, factor = CASES[case]
    teacher = build_teacher(channels, size) if name == "soft" else None
    trainer = build(protocol_of(dataset, name), network, size, channels, teacher)
    if not decoded:
        monkeypatch.setattr(trainer_module, "DECODED_SHARE", 0)
    stored = trainer._prepare(StoredImages(torch.rand(4, channels, size, size), factor))
    labels = torch.arange(4).repeat_interleave(factor**2)
    step = TrainingStep(
        trainer.network, trainer._loss, stored, labels, trainer.protocol, trainer.device
    )
    step.take(torch.arange(6), seeded(0))
    with Operations() as operations:
        step.take(torch.arange(6), seeded(0))
    assert sum(operations.counts.values()) <= most, operations.counts


class Graph:
    """A stand-in for ``CudaGraphRunner``: a graph runs with what its capture saw of the host."""

    def __init__(self, function, updated, device) -> None:
        self.function, self.updated, self.captured = function, updated, False
        Graph.counts.append(function.args[0])

    def __call__(self) -> None:
        if not self.captured:
            self.captured = True
            before = [tensor.detach().clone() for tensor in self.updated]
            for _ in range(3):  # warm-up and capture
                self.function()
            with torch.no_grad():
                for tensor, value in zip(self.updated, before, strict=True):
                    tensor.copy_(value)
        self.function()


@pytest.mark.parametrize(("network", "name"), [("convnet3", "soft"), ("resnet10", "idc")])
def test_a_captured_step_trains_the_same_network(network: str, name: str, monkeypatch) -> None:
    """Warm-up and capture leave weights, the optimiser and batch norms as they were."""
    monkeypatch.setattr(training_step, "CudaGraphRunner", Graph)
    monkeypatch.setattr(Graph, "counts", [], raising=False)
    teacher = build_teacher(1, 16) if name == "soft" else None
    given = {"optimizer": "adamw", "lr": 1e-3} if name == "soft" else {}
    trainer = build(protocol_of("fashionmnist", name, **given), network, 16, 1, teacher)
    images, labels = torch.rand(16, 1, 16, 16), torch.arange(16) % 4

    def train(captured: bool) -> list[Tensor]:
        initialise(trainer.network, seeded(1))
        device = CPU if not captured else torch.device("cuda")
        with monkeypatch.context() as patch:
            if captured:
                for name in ("empty", "zeros", "tensor"):
                    function = getattr(torch, name)
                    patch.setattr(
                        torch, name, lambda *a, _f=function, **k: _f(*a, **(k | {"device": CPU}))
                    )
            step = TrainingStep(
                trainer.network, trainer._loss, images, labels, trainer.protocol, device
            )
        stream = seeded(2)
        for rate in (0.1, 0.02):
            step.set_learning_rate(rate)
            for rows in torch.randperm(16, generator=stream).split(6):
                step.take(rows, stream)
        return [t.detach().clone() for t in trainer.network.state_dict().values()]

    plain, captured = train(False), train(True)
    assert all(torch.equal(*pair) for pair in zip(plain, captured, strict=True))
    assert Graph.counts == [6, 4], "one graph for full batches, one for the last"
