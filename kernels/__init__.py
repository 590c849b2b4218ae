"""MMD^2 between batches of samples, its gradient in the same pass, and the kernel functions."""

from .combinations import Features, Kernel, Product, Sum
from .functional import MMDLoss, gram, mmd2, mmd2_and_grad
from .joint import class_conditional_mmd2, joint_mmd2
from .kernel_functions import (
    Energy,
    Gaussian,
    Laplacian,
    Linear,
    Polynomial,
    RationalQuadratic,
)
from .metrics import CMMD, KID
from .two_sample import (
    aggregated_test,
    block_test,
    optimise_bandwidth,
    permutation_test,
    power_criterion,
    spread_kernels,
    wild_bootstrap_test,
)

__all__ = [
    "CMMD",
    "KID",
    "Energy",
    "Features",
    "Gaussian",
    "Kernel",
    "Laplacian",
    "Linear",
    "MMDLoss",
    "Polynomial",
    "Product",
    "RationalQuadratic",
    "Sum",
    "aggregated_test",
    "block_test",
    "class_conditional_mmd2",
    "gram",
    "joint_mmd2",
    "mmd2",
    "mmd2_and_grad",
    "optimise_bandwidth",
    "permutation_test",
    "power_criterion",
    "spread_kernels",
    "wild_bootstrap_test",
]
