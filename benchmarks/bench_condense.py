"""One iteration of the engine against the published-style loop over classes.

    make bench

Both do the same work on the same real images with the same augmentation: losses and pixel gradients
are asserted equal, in float32, before anything is timed. Fashion-MNIST IPC 10 needs the data set
(Debian's package); ResNetAP-10 at 64 px uses generated images, three classes of a hundred.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.baselines.published import loop_gradients
from benchmarks.memory import peak_bytes
from m3d_fast.augment import augment, draw, parse_strategy
from m3d_fast.common.seeds import generator
from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import MemoryImages, RealImages, open_dataset
from m3d_fast.loaders.readers.labelled import LabelledImages
from m3d_fast.synthetic import decode

Open = Callable[[], RealImages]


def generate_images(
    classes: int, per_class: int, channels: int, size: int, device: str = "cpu"
) -> RealImages:
    """Random blocks of 4 px, in memory: speed does not depend on the content of images."""
    rng = np.random.default_rng(0)
    shape = (classes * per_class, channels, size // 4, size // 4)
    small = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    images = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    labels = np.arange(classes).repeat(per_class)
    names = tuple(f"{c:04d}" for c in range(classes))
    data = LabelledImages(images, labels, names, "generated images")
    return MemoryImages(data, mean=(0.5,) * channels, std=(0.25,) * channels, device=device)


def make_config(precision: str, compile: bool, **settings) -> ResolvedConfig:
    common = {"device": "cpu", "precision": precision, "compile": compile}
    return CondenseConfig(**(common | settings)).resolve()


def build_published_loop(
    condenser: Condenser, real: RealImages
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The loop over classes, on the condenser's network, pixels and augmentation."""
    config, embedder = condenser.config, condenser.embedder
    operations, first = parse_strategy(config.augment), condenser.classes.start

    def run(iteration: int) -> tuple[Tensor, Tensor]:
        draws = draw(
            real.num_classes,
            generator(config.seed, "augment", iteration, device=real.device),
        )

        def prepare(images: Tensor, c: int) -> Tensor:
            normal = embedder.normalise(images)
            return augment(normal[None], draws[first + c, None], operations)[0]

        return loop_gradients(
            embedder.network.embed,
            lambda c: prepare(real.batch([first + c], config.real_batch)[0] / 255, c),
            lambda c, leaf: prepare(decode(leaf, config.factor), c),
            condenser.pixels,
        )

    return run


def compare(time_in_turn, open_real: Open, rounds: int, classes: range | None = None, **settings):
    """Assert equality, then time; returns the loop's time over the engine's."""
    exact = Condenser(make_config("fp32", False, **settings), open_real(), classes)
    fast = Condenser(make_config("bf16", True, **settings), open_real(), classes)
    loop = build_published_loop(exact, open_real())
    start = exact.pixels.clone()
    losses = exact.step(0).losses.sum(1)
    gradient = exact.state()["momentum"].clone()  # after the first step it is the gradient
    exact.pixels.copy_(start)
    expected_losses, expected = loop(0)
    torch.testing.assert_close(losses, expected_losses, atol=2e-5, rtol=1e-4)
    assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max()
    fast.step(0)
    approximate = fast.state()["momentum"].flatten(1)
    cosine = torch.cosine_similarity(approximate, expected.flatten(1), dim=1)
    assert cosine.min() > 0.97, "bf16 gradients have the direction of float32 ones"
    medians = time_in_turn(
        {
            "engine, bf16 compiled": lambda: fast.step(0, value=False),
            "engine, float32 eager": lambda: exact.step(0, value=False),
            "published loop, float32": lambda: loop(0),
        },
        rounds,
    )
    return medians["published loop, float32"] / medians["engine, bf16 compiled"]


def test_fashion_mnist(time_in_turn) -> None:
    settings = {"dataset": "fashionmnist", "ipc": 10, "real_batch": 128}
    faster = compare(time_in_turn, lambda: open_dataset("fashionmnist", seed=1), 4, **settings)
    assert faster > 1


def test_resnet_ap_at_64_px(time_in_turn) -> None:
    settings = {"dataset": "cifar100", "size": 64, "network": "resnetap10"}
    faster = compare(time_in_turn, lambda: generate_images(100, 64, 3, 64), 2, range(3), **settings)
    assert faster > 1


# what a class costs must not depend on how many there are, also where groups of ten share a basis
# and a ridge regression
ONE_BY_ONE = {"ipc": 1, "factor": 1, "real_batch": 2, "class_chunk": 5}
IN_GROUPS = {
    "ipc": 2,
    "factor": 1,
    "real_batch": 2,
    "class_chunk": 10,
    "group": 10,
    "decode": "basis",
    "decoded": 4,
    "add": {"ridge": 1.0},
}


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("settings", [ONE_BY_ONE, IN_GROUPS], ids=["classes", "groups"])
def test_cost_and_memory_per_class_do_not_grow(
    settings: dict[str, object], time_in_turn, benchmark
) -> None:
    """10, 100 and 1000 classes of 16 px, on one core: time to wait for a second one varies."""
    peaks = {}
    steps = {}
    for classes in (10, 100, 1000):
        config = make_config("fp32", False, dataset="digits", **settings)
        condenser = Condenser(config, generate_images(classes, 16, 1, 16))
        # each is timed over steps of 1000 classes in all, so that the durations are comparable
        times = 1000 // classes
        steps[classes] = lambda condenser=condenser, times=times: [
            condenser.step(i, value=False) for i in range(times)
        ]
        peaks[classes] = peak_bytes(lambda condenser=condenser: condenser.step(0, value=False))
    seconds = time_in_turn({f"{classes} classes": step for classes, step in steps.items()})
    benchmark.extra_info["peak_bytes"] = peaks
    per_class = [value / 1000 for value in seconds.values()]
    print(
        {name: f"{1e3 * value / 1000:.3f} ms per class" for name, value in seconds.items()}, peaks
    )
    assert max(per_class) < 1.1 * min(per_class)
    assert peaks[1000] < 1.1 * peaks[10] + 2**20


def test_memory_is_not_above_the_loops() -> None:
    """Fashion-MNIST's shape on generated images; a step of the engine and one of the loop."""
    settings = {"dataset": "fashionmnist", "ipc": 10, "real_batch": 128}
    images = generate_images(10, 128, 1, 28)
    fast = Condenser(make_config("bf16", True, **settings), images)
    loop = build_published_loop(Condenser(make_config("fp32", False, **settings), images), images)
    fast.step(0, value=False)
    ours, theirs = peak_bytes(lambda: fast.step(0, value=False)), peak_bytes(lambda: loop(0))
    print(f"peak: engine {ours / 1e6:.0f} MB, published loop {theirs / 1e6:.0f} MB")
    assert ours <= theirs
