"""The matrix of any kernel function, in plain torch, differentiable by autograd."""

import torch
from torch import Tensor

from .. import reference
from ..combinations import OWN_PATH, Features, Kernel, Product, Sum
from ..kernel_functions import Energy, Laplacian, RationalQuadratic


def gram(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """Compute k(x_i, y_j), (..., N, M)."""
    if isinstance(kernel, Features):
        return gram(kernel.select(x), kernel.select(y), kernel.kernel)
    if isinstance(kernel, (Sum, Product)):
        total = gram(x, y, kernel.kernels[0])
        for part in kernel.kernels[1:]:
            matrix = gram(x, y, part)
            total = total + matrix if isinstance(kernel, Sum) else total * matrix
        return total
    if isinstance(kernel, OWN_PATH):
        return reference.gram(x, y, *kernel.encode(x.shape[-1]))
    if isinstance(kernel, Laplacian) and kernel.norm == "l1":
        dtype = reference.accumulator_dtype(x.dtype)
        return torch.exp(torch.cdist(x.to(dtype), y.to(dtype), p=1.0) / -kernel.bandwidth)
    a, b = reference.centre(reference.sample(x, None), reference.sample(y, None))
    squared = reference.squared_distances(a, b)
    if isinstance(kernel, RationalQuadratic):
        powers = [(1 + squared / (s * kernel.bandwidth)) ** -s for s in kernel.alphas]
        return torch.stack(powers).sum(0)
    # the root of zero has no gradient: zero is used there
    apart = squared > 0
    distance = torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
    if isinstance(kernel, Laplacian):
        return torch.exp(distance / -kernel.bandwidth)
    assert isinstance(kernel, Energy)
    return -(distance**kernel.exponent)
