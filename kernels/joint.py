"""MMD^2 of distributions with labels or of several layers: class-conditional and joint MMD."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, functional
from .checks import Estimator
from .combinations import Features, Kernel, Product
from .general import op, tiled
from .kernel_functions import M3D_KERNEL
from .reference import accumulator_dtype


def class_conditional_mmd2(
    x: Tensor,
    y: Tensor,
    x_classes: Tensor,
    y_classes: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    estimator: Estimator = "biased",
) -> Tensor:
    """The mean over classes of the MMD^2 between the rows of a class in ``x`` and in ``y``.

    With probabilities for ``y`` it is the local MMD of Deep Subdomain Adaptation (Zhu et al. 2020,
    eq. 5 and 6). All classes are computed in one pass over the pairs of rows, with one bandwidth.

    Args:
        x: ``(N, D)``, any floating dtype.
        y: ``(M, D)``, same dtype and device.
        x_classes: the class of each row, int64 ``(N,)``, or the probabilities of C classes,
            floating ``(N, C)``, not negative.
        y_classes: the same for ``y``, with the same number of classes.
        kernel: as in ``mmd2``.
        estimator: as in ``mmd2``; the unbiased one leaves out classes with one row.

    Returns:
        ``()``, differentiable in ``x`` and ``y`` (not in the probabilities): the mean over the
        classes that have rows in both samples.

    Raises:
        TypeError, ValueError: for invalid arguments, or (on a CPU) if no class is in both.
    """
    checks.check_samples(x, y)
    checks.check_kernel(kernel)
    checks.check_choice("estimator", estimator, checks.ESTIMATORS)
    if x.ndim != 2:
        raise ValueError(f"x, y: expected (N, D) and (M, D), got {tuple(x.shape)}")
    sides = (("x_classes", x_classes, x), ("y_classes", y_classes, y))
    classes = max(_count_classes(*side) for side in sides)
    weights = [_weigh_classes(*side, classes) for side in sides]
    least = 2 if estimator == "unbiased" else 1
    shared = torch.stack([(one > 0).sum(-1) >= least for one in weights]).all(0)
    if x.device.type == "cpu" and not shared.any():
        raise ValueError(
            f"x_classes, y_classes: expected a class with {least} rows in both samples"
        )
    # each class of the mean enters a sum of products of two weights
    share = (shared / shared.sum()).sqrt().to(weights[0].dtype)
    u, v = (
        torch.where(shared[:, None], tiled.normalise(one) * share[:, None], 0.0) for one in weights
    )
    return op.compute_value(
        functional._encode_weighted(x, y, u, v, kernel, estimator == "unbiased")
    )


def _count_classes(label: str, classes: Tensor, points: Tensor) -> int:
    if not isinstance(classes, Tensor):
        raise TypeError(f"{label}: expected a tensor, got {type(classes).__name__}")
    rows = len(points)
    if classes.is_floating_point() and (classes.ndim != 2 or len(classes) != rows):
        raise ValueError(f"{label}: expected ({rows}, classes), got {tuple(classes.shape)}")
    if not classes.is_floating_point() and classes.shape != (rows,):
        raise ValueError(f"{label}: expected ({rows},), got {tuple(classes.shape)}")
    if classes.device != points.device:
        raise ValueError(f"{label}: expected device {points.device}, got {classes.device}")
    return classes.shape[1] if classes.is_floating_point() else int(classes.max()) + 1


def _weigh_classes(label: str, classes: Tensor, points: Tensor, count: int) -> Tensor:
    """Weights of the rows in each class, (C, n)."""
    dtype = accumulator_dtype(points.dtype)
    if not classes.is_floating_point():
        if classes.dtype != torch.int64 or int(classes.min()) < 0:
            given = classes.dtype if classes.dtype != torch.int64 else int(classes.min())
            raise ValueError(f"{label}: expected int64 classes of at least 0, got {given}")
        return torch.nn.functional.one_hot(classes, count).to(dtype).T
    if classes.shape[1] != count:
        raise ValueError(
            f"{label}: expected {count} classes, as in the other sample, got {classes.shape[1]}"
        )
    classes = classes.detach()
    if classes.device.type == "cpu" and not ((classes >= 0) & classes.isfinite()).all():
        raise ValueError(f"{label}: expected probabilities of at least 0, got others")
    return classes.to(dtype).T


def joint_mmd2(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    kernels: Sequence[Kernel] | None = None,
    *,
    estimator: Estimator = "biased",
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> Tensor:
    """MMD^2 of the joint distribution of several layers, with the product of their kernels.

    Joint Adaptation Networks (Long et al. 2017, arXiv 1605.06636, eq. 8).

    Args:
        x: the activations of each layer, ``(..., N, D_l)``, of the same rows.
        y: the same for the other sample, ``(..., M, D_l)``.
        kernels: one per layer; None means ``Gaussian()`` for each.
        estimator: as in ``mmd2``.
        x_weights: as in ``mmd2``.
        y_weights: as in ``mmd2``.

    Returns:
        ``(...)``, differentiable in every layer.

    Raises:
        TypeError, ValueError: for invalid arguments.
    """
    kernels = [M3D_KERNEL] * len(x) if kernels is None else kernels
    if not len(x) == len(y) == len(kernels) or not x:
        raise ValueError(
            f"x, y, kernels: expected as many layers in each, at least one,"
            f" got {len(x)}, {len(y)} and {len(kernels)}"
        )
    parts: list[Kernel] = []
    start = 0
    for a, b, kernel in zip(x, y, kernels, strict=True):
        checks.check_samples(a, b)
        parts.append(Features(kernel, (start, start + a.shape[-1])))
        start += a.shape[-1]
    for label, layers in (("x", x), ("y", y)):
        if len({layer.shape[:-1] for layer in layers}) > 1:
            shapes = [tuple(layer.shape) for layer in layers]
            raise ValueError(f"{label}: expected layers of the same rows, got {shapes}")
    return functional.mmd2(
        torch.cat(list(x), -1),
        torch.cat(list(y), -1),
        Product(*parts),
        estimator=estimator,
        x_weights=x_weights,
        y_weights=y_weights,
    )
