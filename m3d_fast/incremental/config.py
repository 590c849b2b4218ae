"""Settings of class-incremental learning."""

from dataclasses import dataclass

from ..common.checks import check_positive
from ..settings import fill_defaults, setting

RANDOM = "random"  # the baseline: real images drawn from each class


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Settings of class-incremental learning; ``None`` means the default, or the set's own.

    Every field is a flag of ``python -m m3d_fast.continual``; ``--help`` explains each.
    """

    steps: int = setting(
        group="experiment",
        metavar="N",
        help="the classes come in N groups of equal size; N divides their number",
        default=5,
    )
    orders: int = setting(
        group="experiment", metavar="N", help="orders of the classes, averaged over", default=5
    )
    network: str | None = setting(
        group="experiment", metavar="NAME", help="trained at every step [the first run's]"
    )
    epochs: int | None = setting(
        group="experiment",
        metavar="N",
        help="passes over the memory, decoded, at every step [the published protocol's]",
    )
    random: bool | None = setting(
        group="experiment", help="also random real images as the memory", default=False
    )
    seed: int = setting(
        group="run", metavar="N", help="one seed gives one result on one machine", default=0
    )
    dataset: str | None = setting(
        group="run", metavar="NAME", help="of sets that name none [that named in them]"
    )
    data_root: str | None = setting(
        group="run", metavar="DIR", help="folder that holds the data set [the first run's]"
    )
    out: str | None = setting(
        group="run",
        metavar="DIR",
        help="folder of continual.json and continual.png [runs/continual-DATASET-stepsN-seedN]",
    )
    device: str | None = setting(
        group="run", metavar="NAME", help="cuda, cuda:N or cpu [cuda if there is one]"
    )
    precision: str | None = setting(
        group="run",
        metavar="NAME",
        help="network arithmetic: bf16 or fp32 [bf16 where the hardware has it]",
    )

    def __post_init__(self) -> None:
        fill_defaults(self)

    def check(self) -> None:
        """Raise UserError for a setting that no data could fit."""
        for name in ("steps", "orders", "epochs"):
            value = getattr(self, name)
            if value is not None:
                check_positive(name, value)
