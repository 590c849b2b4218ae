"""The strong preset at one image per class: what does each of its parts gain?"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor

from m3d_fast.engine.pixel_store import PixelState
from m3d_fast.methods import TERMS, Method, Network, Reading, ridge

from .study import Difference, Study, of_settings


class NoLoss(Method):
    """A method without a loss: what is left are the terms added to it."""

    terms: ClassVar[tuple[str, ...]] = ("none",)

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Zero."""
        objective = 0 * synthetic.each[0].sum()
        return synthetic.each[0].new_zeros(len(synthetic.each[0]), 1), objective


class SoftRidge(ridge.Ridge):
    """Ridge regression of what a network of the pool, trained to its end, says of real images.

    Attributes:
        share: of that in the labels; the rest is one-hot.
    """

    experts: ClassVar[bool] = True
    share: ClassVar[float] = 1.0

    def read_real(self, network: Network, images: Tensor, labels: Tensor) -> Tensor:
        """Last features, then probabilities."""
        expert = network.expert
        soft = expert.classify(expert.embed(images)).softmax(-1)
        return torch.cat([network.embed(images), soft], -1)

    def loss(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Squared error, of a group that has all classes."""
        features, soft = real.split([synthetic.shape[2], real.shape[2] - synthetic.shape[2]], 2)
        hard = ridge.centre_labels(synthetic)[:, None]
        target = hard.lerp(soft - 1 / len(real), self.share)
        predicted = ridge.predict_labels(features.contiguous(), synthetic)
        return (predicted - target).square().sum(2).mean(1)


class HalfSoftRidge(SoftRidge):
    """Labels half soft, half one-hot."""

    share: ClassVar[float] = 0.5


@contextmanager
def regress_by(**options: Any) -> Iterator[None]:
    """Other options of the ridge regression."""
    with patch.object(ridge, "ridge_losses", partial(ridge.ridge_losses, **options)):
        yield


@contextmanager
def widen_kernel(times: float) -> Iterator[None]:
    """Another bandwidth of the ridge regression's Gaussian."""

    def gaussian(distances: Tensor, bandwidth: Tensor) -> Tensor:
        return torch.exp(-distances.clamp_min(0) / (times * bandwidth))

    with patch.object(ridge, "_gaussian", gaussian):
        yield


@contextmanager
def decay_pixels(decay: float) -> Iterator[None]:
    """AdamW: pixels shrink by ``decay`` times the learning rate before every step."""
    usual = PixelState.step_

    def step(state: PixelState, gradient: Tensor, lr: float, *others: Any, **named: Any) -> None:
        with torch.no_grad():
            state.pixels.mul_(1 - lr * decay)
        usual(state, gradient, lr, *others, **named)

    with patch.object(PixelState, "step_", step):
        yield


def _added(**weights: float) -> Difference:
    return of_settings(add=weights)


def _calibrated(
    code: Callable[[], AbstractContextManager[None]] = nullcontext, **settings: Any
) -> Difference:
    """Calibration beside the ridge regression, under networks of a pool, as it had been."""
    return Difference({"add": {"ridge": 1.0, "calibration": 0.1}} | settings, code=code)


NO_LOSS = f"{__name__}:{NoLoss.__name__}"

ROWS: dict[str, Difference] = {
    "base": Difference(),
    "seed 1": of_settings(seed=1),
    "seed 2": of_settings(seed=2),
    # without one part
    "no ridge": of_settings(add={}, draws="all"),
    "no ridge, a draw per class": of_settings(add={}, draws="class"),
    "no M3D": of_settings(method=NO_LOSS),
    "no average": of_settings(average=0.0),
    "tiles": of_settings(decode="tiles", add={"ridge": 1.0}),
    "tiles, Adam": of_settings(decode="tiles", add={"ridge": 1.0}, optimizer="adam"),
    "tiles, AdamW": Difference(
        {"decode": "tiles", "add": {"ridge": 1.0}, "optimizer": "adam"},
        code=lambda: decay_pixels(0.01),
    ),
    # with another
    "ridge weighs 0.3": _added(ridge=0.3),
    "ridge weighs 3": _added(ridge=3.0),
    "ridge 1e-4": Difference(code=lambda: regress_by(ridge=1e-4)),
    "ridge 1e-2": Difference(code=lambda: regress_by(ridge=1e-2)),
    "linear kernel": Difference(code=lambda: regress_by(gaussian=False)),
    "half the bandwidth": Difference(code=lambda: widen_kernel(0.5)),
    "twice the bandwidth": Difference(code=lambda: widen_kernel(2.0)),
    "rate 0.005": of_settings(lr_img=0.005),
    "rate 0.02": of_settings(lr_img=0.02),
    "cosine": of_settings(lr_schedule="cosine"),
    "average 0.98": of_settings(average=0.98),
    "real batch 16": of_settings(real_batch=16),
    "real batch 64": of_settings(real_batch=64),
    "real batch 128": of_settings(real_batch=128),
    "150 iterations": of_settings(iterations=150),
    "600 iterations": of_settings(iterations=600),
    # other networks
    "a new network every step": of_settings(ipm=1),
    "networks that train on real images": of_settings(networks_from="real", ipm=30),
    "pool": of_settings(networks_from="pool"),
    "calibration": _calibrated(),
    "calibration, seed 1": _calibrated(seed=1),
    "calibration, seed 2": _calibrated(seed=2),
    "calibration, no ridge": of_settings(add={"calibration": 0.1}, draws="all"),
    "calibration, no M3D": _calibrated(method=NO_LOSS),
    "calibration, tiles": _calibrated(decode="tiles"),
    "calibration weighs 0.03": _added(ridge=1.0, calibration=0.03),
    "calibration weighs 0.3": _added(ridge=1.0, calibration=0.3),
    "calibration, 2 networks": _calibrated(pool=2),
    "calibration, 10 networks": _calibrated(pool=10),
    "calibration, networks of 0.1 epochs": _calibrated(pool_epochs=0.1),
    "calibration, networks of 1 epoch": _calibrated(pool_epochs=1.0),
    "calibration, 1 epoch, three stages": _calibrated(pool_epochs=1.0, pool_stages=3),
    "calibration, two stages": _calibrated(pool_stages=2),
    "calibration, soft labels": _calibrated(lambda: patch.dict(TERMS, ridge=SoftRidge)),
    "calibration, half soft labels": _calibrated(lambda: patch.dict(TERMS, ridge=HalfSoftRidge)),
}

STUDY = Study(
    base={
        "dataset": "fashionmnist",
        "ipc": 1,
        "preset": "strong",
        "iterations": 300,
        "real_batch": 32,
        "hold_out": 0.1,
    },
    epochs=160,
    repeats=2,
    rows=ROWS,
)
