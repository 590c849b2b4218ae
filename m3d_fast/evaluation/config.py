"""Settings of an evaluation."""

from dataclasses import dataclass

from ..coreset import CORESETS
from ..networks import NETWORKS
from ..settings import fill_defaults, setting

WHOLE = "whole"  # the full training set: what a small one can reach at best
BASELINES = (*CORESETS, WHOLE)
PLAIN = "none"  # augmentation of the evaluation that a score needs besides the usual one
TEST_SPLITS = ("test", "held-out")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of an evaluation; ``None`` means the published protocol's value, or the run's.

    Every field is a flag of ``python -m m3d_fast.evaluate``; ``--help`` explains each.
    """

    protocol: str = setting(
        group="protocol",
        metavar="NAME",
        help="how networks are trained: idc, dm or hard; on labels of a teacher soft or kd",
        default="idc",
    )
    teacher: str | None = setting(
        group="protocol",
        metavar="ARCHITECTURE:FILE",
        help="of soft and kd: weights of a network of ours, torchvision or timm, as a state dict; "
        "or trained[:NETWORK], trained once on the training set",
    )
    stored_labels: int | None = setting(
        group="protocol",
        metavar="K",
        help="of soft: labels of the images as they are, of the K most probable classes in half "
        "precision, stored once beside the results [the teacher sees every augmented image]",
    )
    networks: str | None = setting(
        group="protocol",
        metavar="NAMES",
        help=f"trained, by commas: {', '.join(NETWORKS)}, or your own, package.module:name, which "
        "maps (channels, size, classes) to a module [the run's]",
    )
    repeats: int | None = setting(
        group="protocol",
        metavar="N",
        help="networks trained per method [10; from 65 px on 3; dm: 20]",
    )
    epochs: int | None = setting(
        group="protocol",
        metavar="N",
        help="passes over the decoded set [idc: 1000, from 65 px on by its size; dm: 1000; "
        "others: 300]",
    )
    baselines: str = setting(
        group="protocol", metavar="NAMES", help=f"by commas: {', '.join(BASELINES)}", default=""
    )
    augment: str | None = setting(
        group="protocol",
        metavar="NAME",
        help=f"{PLAIN}: neither augmentation nor CutMix, into evaluation_plain.json "
        "[the protocol's]",
    )
    whole_epochs: int | None = setting(
        group="protocol",
        metavar="N",
        help="passes over the full training set, for the baseline whole [as over the others]",
    )
    initial: bool = setting(
        group="protocol", help="also train on the images that the run started from", default=True
    )
    split: str = setting(
        group="protocol",
        metavar="NAME",
        help="networks are tested on test, or on the held-out images of a run with --hold-out",
        default="test",
    )
    seed: int = setting(
        group="run", metavar="N", help="one seed gives one result on one machine", default=0
    )
    data_root: str | None = setting(
        group="run", metavar="DIR", help="folder that holds the data set [the run's]"
    )
    loader: str | None = setting(
        group="run", metavar="NAME", help="image files through ffcv, folder or auto [the run's]"
    )
    cache: str | None = setting(
        group="run",
        metavar="NAME",
        help="images kept in memory: auto, device, host or none [the run's]",
    )
    workers: int | None = setting(
        group="run", metavar="N", help="threads or processes that decode images [the run's]"
    )
    device: str | None = setting(
        group="run", metavar="NAME", help="cuda, cuda:N or cpu [cuda if there is one]"
    )
    precision: str | None = setting(
        group="run",
        metavar="NAME",
        help="network arithmetic: bf16 or fp32 [bf16 where the hardware has it]",
    )
    compile: bool | None = setting(group="run", help="torch.compile the networks [when it pays]")

    def __post_init__(self) -> None:
        # at once: unlike a condensation, an evaluation never takes settings from an earlier one
        fill_defaults(self)
