"""Settings of a comparison of moments."""

from dataclasses import dataclass

from ..networks import CONDENSING
from ..settings import fill_defaults, setting


@dataclass(frozen=True, kw_only=True)
class MomentsConfig:
    """Settings of a comparison of moments; ``None`` means the default, or the run's.

    Every field is a flag of ``python -m m3d_fast.moments``; ``--help`` explains each.
    """

    networks: int = setting(
        group="comparison", metavar="N", help="random networks, averaged over", default=3
    )
    network: str | None = setting(
        group="comparison",
        metavar="NAME",
        help=f"embeds the images: {', '.join(CONDENSING)} [the run's]",
    )
    tsne: int = setting(
        group="comparison",
        metavar="N",
        help="real images per class in the t-SNE, of the first 10 classes; 0: no t-SNE",
        default=100,
    )
    seed: int = setting(
        group="run", metavar="N", help="one seed gives one result on one machine", default=0
    )
    out: str | None = setting(
        group="run",
        metavar="DIR",
        help="folder of one table and pictures of all runs [of each run, its own folder]",
    )
    data_root: str | None = setting(
        group="run", metavar="DIR", help="folder that holds the data set [the run's]"
    )
    device: str | None = setting(
        group="run", metavar="NAME", help="cuda, cuda:N or cpu [cuda if there is one]"
    )
    precision: str | None = setting(
        group="run",
        metavar="NAME",
        help="network arithmetic: bf16, tf32 (CUDA) or fp32 [bf16 where in hardware]",
    )

    def __post_init__(self) -> None:
        fill_defaults(self)
