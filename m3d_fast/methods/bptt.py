"""Back-propagation through the training of networks on the synthetic images (RaT-BPTT)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..common.checks import check_positive
from ..common.errors import UserError
from ..presets import Preset, Setting, bptt_preset
from .protocol import Objective, Scope


@dataclass(frozen=True)
class BPTT(Objective):
    """Cross-entropy of real images under networks that have been trained on the synthetic ones.

    Its gradient in the pixels is taken through a window of the training that ends there, at a
    random place of it: random truncated back-propagation through time (arXiv 2311.07025). The
    networks train as those of the evaluation do, batches of 64 with CutMix and SGD with momentum
    0.9 and weight decay 5e-4. It suits the last part of a condensation: ``--init RUN_DIR`` starts
    from the result of another one.

    Ours: the real images are classified by a moving average of the weights, which is where a
    training ends whose rate falls, instead of by the last weights; a gradient is scaled down to
    twice the root mean square of those before it.

    Attributes:
        window: steps of the training through which the gradient is taken.
        between: steps that a network takes after each of its windows.
        horizon: steps after which a network is replaced by one that is drawn anew; unless set,
            600 at one image per class, whose evaluations take fewer steps.
        batch: synthetic images of a step, at most.
        rate: learning rate of the networks.
        weight_average: share of the average of the weights that stays in a step.
    """

    terms: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    scope: ClassVar[Scope] = "set"
    networks_from: ClassVar[str] = "synthetic"

    window: int = 10
    between: int = 10
    horizon: int = 1_600
    batch: int = 64
    rate: float = 0.01
    weight_average: float = 0.98

    def __post_init__(self) -> None:
        for name in ("window", "batch", "rate", "horizon"):
            check_positive(name, getattr(self, name))
        if self.between < 0:
            raise UserError(f"between: expected a whole number >= 0, got {self.between}")
        if self.horizon < self.window:
            raise UserError(
                f"horizon: expected at least the {self.window} steps of a window, got "
                f"{self.horizon}"
            )
        if not 0 <= self.weight_average < 1:
            raise UserError(
                f"weight_average: expected a number from 0 to below 1, got {self.weight_average}"
            )

    @classmethod
    def options_for(cls, setting: Setting) -> Mapping[str, Any]:
        """The horizon of one image per class."""
        return {"horizon": 600} if setting.ipc == 1 else {}

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """Found on Fashion-MNIST's held-out images; the paper's runs are far longer."""
        return bptt_preset(setting)
