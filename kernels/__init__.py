"""MMD^2 between batches of samples, its gradient in the same pass, and the kernel functions."""

from .functional import MMDLoss, gram, mmd2, mmd2_and_grad
from .kernel_functions import Gaussian, Kernel, Linear, Polynomial
from .metrics import CMMD, KID
from .two_sample import permutation_test

__all__ = [
    "CMMD",
    "KID",
    "Gaussian",
    "Kernel",
    "Linear",
    "MMDLoss",
    "Polynomial",
    "gram",
    "mmd2",
    "mmd2_and_grad",
    "permutation_test",
]
