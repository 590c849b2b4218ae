"""IDM: distribution matching under networks that train on (arXiv 2307.09742)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.checks import check_positive
from ..presets import Preset, Setting, idm_preset
from .calibration import cross_entropies
from .matching import FeatureMatching
from .protocol import Method, Network, Reading


@dataclass(frozen=True)
class IDM(FeatureMatching, Method):
    """Distance of features, and the cross-entropy of synthetic images under the same network.

    The cross-entropy, a mean over a class's images, counts as much as the network is right: its
    weight is ``cross_entropy`` times the running accuracy of the network's training in percent.
    With ``matching=mmd`` it is M3D's loss in IDM's setting (M3D, arXiv 2312.15927, table 5).

    Attributes:
        cross_entropy: weight of the cross-entropy, per percent of accuracy.
    """

    terms: ClassVar[tuple[str, ...]] = ("matching", "cross_entropy")
    networks_from: ClassVar[str] = "queue"

    cross_entropy: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("cross_entropy", self.cross_entropy)

    @classmethod
    def preset(cls, setting: Setting) -> Preset:
        """As published."""
        return idm_preset(setting)

    @classmethod
    def options_for(cls, setting: Setting) -> Mapping[str, Any]:
        """A smaller weight where the paper has one."""
        small = setting.dataset == "cifar10" and setting.ipc >= 50
        return {"cross_entropy": 0.1} if small else {}

    def probe_synthetic(self, network: Network, images: Tensor, labels: Tensor) -> Reading:
        """Last features, and the cross-entropy of every image times the network's accuracy."""
        features = network.embed(images)
        return Reading((features, cross_entropies(network, images, labels) * network.accuracy))

    def losses(
        self, real: Reading, synthetic: Reading, value: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The distance of features, and the cross-entropy."""
        features, errors = synthetic.each
        matched, objective = self.match(real.each[0], features, value)
        errors = 100 * self.cross_entropy * errors.mean(1)
        columns = None if matched is None else torch.stack([matched, errors.detach()], 1)
        return columns, objective + errors.sum()
