"""What can be set of an evaluation."""

from dataclasses import dataclass

from ..networks import NETWORKS
from ..settings import setting

BASELINES = ("random", "herding", "k-center")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation; ``None`` means the published protocol's value.

    Every field is a flag of ``python -m m3d_fast.evaluate``; ``--help`` explains each.
    """

    networks: str | None = setting(
        None, "protocol", "NAMES", f"trained, by commas: {', '.join(NETWORKS)} [the run's]"
    )
    repeats: int | None = setting(
        None, "protocol", "N", "networks trained per method [10; from 65 px on 3]"
    )
    epochs: int | None = setting(
        None, "protocol", "N", "passes over the decoded set [1000; from 65 px on by its size]"
    )
    baselines: str = setting("", "protocol", "NAMES", f"by commas: {', '.join(BASELINES)}")
    seed: int = setting(0, "run", "N", "one seed gives one result on one machine")
    data_root: str | None = setting(
        None, "run", "DIR", "folder that holds the data set [the run's]"
    )
    loader: str | None = setting(
        None, "run", "NAME", "image files through ffcv, folder or auto [the run's]"
    )
    cache: str | None = setting(
        None, "run", "NAME", "images kept in memory: auto, device, host or none [the run's]"
    )
    workers: int | None = setting(
        None, "run", "N", "threads or processes that decode images [the run's]"
    )
    device: str | None = setting(None, "run", "NAME", "cuda, cuda:N or cpu [cuda if there is one]")
    precision: str | None = setting(
        None, "run", "NAME", "network arithmetic: bf16 or fp32 [bf16 where the hardware has it]"
    )
    compile: bool | None = setting(None, "run", "", "torch.compile the networks [when it pays]")
