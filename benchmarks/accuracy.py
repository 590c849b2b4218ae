"""Errors of the op and of the published loss against float64, far from the origin.

python -m benchmarks.accuracy
"""

import torch
from torch import Tensor

from benchmarks.baselines.published import stacked_loss
from m3d_fast.kernels import mmd2_and_grad

DISTANCES = (0.0, 60.0, 1000.0)  # mean of the features in units of their standard deviation


def format_error(result: Tensor, exact: Tensor) -> str:
    """The relative error, in percent."""
    return f"{100 * ((result.double() - exact).norm() / exact.norm()).item():.1e} %"


def main() -> None:
    """Print a row per distance: 128 and 40 float32 features of 512 dimensions."""
    print("mean/std  error of the value: op, published  of the gradient: op, published")
    for mean in DISTANCES:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(128, 512, generator=generator) + mean
        y = torch.randn(40, 512, generator=generator) + mean + 0.05
        exact_value, exact = mmd2_and_grad(x.double(), y.double())
        value, gradient = mmd2_and_grad(x, y)
        leaf = y.clone().requires_grad_()
        loss = stacked_loss(x, leaf)
        loss.backward()
        assert exact_value is not None
        assert value is not None
        assert leaf.grad is not None
        pairs = (
            (value, exact_value),
            (loss.detach(), exact_value),
            (gradient, exact),
            (leaf.grad, exact),
        )
        errors = [format_error(*pair) for pair in pairs]
        print(f"{mean:8.0f}  {', '.join(errors[:2])}  {', '.join(errors[2:])}")


if __name__ == "__main__":
    main()
