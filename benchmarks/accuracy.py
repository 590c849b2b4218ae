"""How far from float64 are the op and the published loss, away from the origin?

python -m benchmarks.accuracy
"""

import torch
from torch import Tensor

from benchmarks.baselines.published import stacked_loss
from m3d_fast.kernels import mmd2_and_grad

DISTANCES = (0.0, 60.0, 1000.0)  # mean of the features, in their standard deviations


def off(found: Tensor, exact: Tensor) -> float:
    """Relative error, in percent."""
    return 100 * ((found.double() - exact).norm() / exact.norm()).item()


def main() -> None:
    """Print a row per distance: 128 and 40 float32 features of 512 dimensions."""
    print("mean/std  value off: op, published  gradient off: op, published")
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
        values = f"{off(value, exact_value):.1e} %, {off(loss.detach(), exact_value):.1e} %"
        gradients = f"{off(gradient, exact):.1e} %, {off(leaf.grad, exact):.1e} %"
        print(f"{mean:8.0f}  {values}  {gradients}")


if __name__ == "__main__":
    main()
