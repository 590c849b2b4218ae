"""One iteration of the engine against the published-style loop, Fashion-MNIST, IPC 10, batch 128.

    make bench

Both do the same work from the same real images and draws: equality of losses and pixel gradients
is asserted, in float32, before anything is timed. Needs Fashion-MNIST (Debian's package).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.published import loop_gradients
from m3d_fast.augment import augment, draw, parse_strategy
from m3d_fast.condenser import Condenser
from m3d_fast.config import CondenseConfig
from m3d_fast.loaders import open_dataset
from m3d_fast.randomness import generator
from m3d_fast.synthetic import decode


def engine(precision: str, compile: bool) -> Condenser:
    config = CondenseConfig(
        dataset="fashionmnist",
        ipc=10,
        real_batch=128,
        device="cpu",
        precision=precision,
        compile=compile,
    ).resolved()
    return Condenser(config, open_dataset("fashionmnist", seed=1))


def published_step(condenser: Condenser) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The loop over classes on the condenser's pixels and draws, with a network of its own."""
    config, real = condenser.config, open_dataset("fashionmnist", seed=1)
    operations = parse_strategy(config.augment)

    def step(iteration: int) -> tuple[Tensor, Tensor]:
        draws = draw(10, generator(config.seed, "augment", iteration))

        def shown(images: Tensor, c: int) -> Tensor:
            normal = (images - condenser.mean) / condenser.std
            return augment(normal[None], draws[c : c + 1], operations)[0]

        return loop_gradients(
            condenser.embedder.network.embed,
            lambda c: shown(real.batch([c], config.real_batch)[0] / 255, c),
            lambda c, leaf: shown(decode(leaf, config.factor), c),
            condenser.pixels.detach(),
        )

    return step


def test_iteration_against_the_published_loop(interleaved) -> None:
    exact, fast = engine("fp32", compile=False), engine("bf16", compile=True)
    loop = published_step(exact)
    start = exact.pixels.detach().clone()
    losses = exact.step(0)
    gradient = exact.pixels.grad.clone()
    with torch.no_grad():
        exact.pixels.copy_(start)
    expected_losses, expected = loop(0)
    torch.testing.assert_close(losses, expected_losses, atol=2e-5, rtol=1e-4)
    assert (gradient - expected).abs().max() < 1e-3 * expected.abs().max()
    fast.step(0)
    cosine = torch.cosine_similarity(fast.pixels.grad.flatten(1), expected.flatten(1), dim=1)
    assert cosine.min() > 0.98, "bf16 gradients point where float32's do"

    medians = interleaved(
        {
            "engine, bf16 compiled": lambda: fast.step(0),
            "engine, float32 eager": lambda: exact.step(0),
            "published loop, float32": lambda: loop(0),
        }
    )
    assert medians["engine, bf16 compiled"] < medians["published loop, float32"]
