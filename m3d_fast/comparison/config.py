"""Settings of a comparison: its own, and those of the runs and of their evaluation."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..common.checks import check_positive
from ..common.errors import UserError
from ..config import CondenseConfig
from ..evaluation.config import EvaluateConfig
from ..settings import setting

METHODS = "random,herding,dm,m3d"
HOLD_OUT = 0.1  # share held out where learning rates are tried, unless given


def numbers_by_commas(text: str) -> tuple[float, ...]:
    """The numbers of ``F,F,...``."""
    return tuple(float(part) for part in text.split(","))


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Settings that only a comparison has; ``None`` means not given."""

    methods: str | None = setting(
        group="comparison",
        metavar="NAMES",
        help="methods, coresets and whole (the full training set), by commas; a method's own "
        "options or settings in brackets, as in 'dm,ddm[beta=0]'",
        default=METHODS,
    )
    out: str | None = setting(
        group="comparison",
        metavar="DIR",
        help="folder of the run folders, compare.json and compare.png "
        "[runs/compare-DATASET-ipcN-seedN]",
    )
    lr_img: tuple[float, ...] | None = setting(
        group="comparison",
        metavar="F,...",
        help="learning rate of the images; of several each method takes the one that is best on "
        "held-out images after short runs [each method's own]",
        parse=numbers_by_commas,
    )
    lr_scales: tuple[float, ...] | None = setting(
        group="comparison",
        metavar="F,...",
        help="several learning rates to choose among, as multiples of each method's own",
        parse=numbers_by_commas,
    )


@dataclass(frozen=True, kw_only=True)
class CompareConfig(CompareSettings):
    """Settings of a comparison.

    Attributes:
        condense: of every run; settings of steps are left out for coresets.
        evaluate: of every evaluation.
    """

    condense: CondenseConfig = field(default_factory=CondenseConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def check(self) -> None:
        """Raise UserError for an invalid setting of the comparison's own."""
        if self.lr_img and self.lr_scales:
            raise UserError("lr_img, lr_scales: expected one of them, got both")
        for name in ("lr_img", "lr_scales"):
            rates = getattr(self, name) or ()
            for rate in rates:
                check_positive(name, rate)
            if len(set(rates)) < len(rates):
                raise UserError(f"{name}: expected different numbers, got {rates}")
        if self.lr_scales and len(self.lr_scales) == 1:
            raise UserError(
                f"lr_scales: expected several numbers to choose among, got {self.lr_scales}"
            )


# settings of a run that a comparison decides, or that say how a single run is observed
DECIDED = ("method", "options", "kernel", "lr_img", "out", "profile")
# settings of an evaluation that a comparison decides, or of another meaning than those of runs
OWN_ROWS = ("baselines", "initial", "augment")


def split_settings(given: dict[str, Any]) -> CompareConfig:
    """The configuration of these flags; those of runs and evaluations alike go to both."""

    def select(config: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
        names = {f.name for f in fields(config)} - set(without)
        return {name: value for name, value in given.items() if name in names}

    return CompareConfig(
        condense=CondenseConfig(**select(CondenseConfig, DECIDED)),
        evaluate=EvaluateConfig(**select(EvaluateConfig, OWN_ROWS)),
        **select(CompareSettings),
    )
