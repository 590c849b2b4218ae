"""Small condensations of the digits in this process."""

from torch import Tensor

from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.engine.condenser import Condenser
from m3d_fast.loaders import RealImages, open_dataset


def digits_settings(**given) -> ResolvedConfig:
    fixed = {"dataset": "digits", "device": "cpu", "precision": "fp32", "real_batch": 12}
    return CondenseConfig(**(fixed | given)).resolve()


def open_digits(config: ResolvedConfig, seed: int = 5) -> RealImages:
    return open_dataset("digits", size=config.size, seed=seed)


def digits_condenser(config: ResolvedConfig | None = None, **more) -> Condenser:
    """A condenser with images of its own: two of the same settings draw the same ones."""
    config = config or digits_settings()
    return Condenser(config, open_digits(config), **more)


def run_steps(config: ResolvedConfig, steps: int) -> tuple[Condenser, list[Tensor]]:
    """A condenser after its first iterations, and their losses ``(C,)``."""
    condenser = digits_condenser(config)
    return condenser, [condenser.step(iteration).losses.sum(1) for iteration in range(steps)]


def copy_state(condenser: Condenser) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in condenser.state().items()}
