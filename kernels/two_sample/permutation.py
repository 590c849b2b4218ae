"""A permutation test of whether two samples come from one distribution."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks, ops
from ..arguments import OpArguments
from ..combinations import OWN_PATH, Kernel
from ..cpu import blocks, tiles
from ..kernel_functions import M3D_KERNEL
from ..precision import full_float32
from ..reference import Rule, accumulator_dtype, prepare_bandwidth
from .pair_sums import PairSums, sum_pairs

SORTED_KEYS = 2**24  # drawn at a time on a GPU: 0.5 GB with their order and what sorting needs


class PermutationTest(NamedTuple):
    """Result of ``permutation_test``."""

    statistic: Tensor  # (), MMD^2 of the two samples
    p_value: float
    null: Tensor  # (permutations,), MMD^2 of each random permutation


def permutation_test(
    x: Tensor,
    y: Tensor,
    kernel: Kernel = M3D_KERNEL,
    *,
    permutations: int = 1000,
    generator: torch.Generator | None = None,
) -> PermutationTest:
    """Test whether ``x`` and ``y`` come from one distribution.

    If they do, every permutation of the stacked rows [x; y] is equally likely. The p-value is the
    share of permutations, the given order included, whose MMD^2 is at least that of the samples:
    ``(1 + number of such random permutations) / (1 + permutations)``, which is never zero (Gretton
    et al. 2012, A Kernel Two-Sample Test; Phipson and Smyth 2010). Each tile of the kernel matrix
    is computed once and multiplied by the 0/1 matrix of which rows are in the smaller sample, so
    the kernel matrix is neither stored nor gathered.

    Args:
        x: ``(N, D)``, any floating dtype.
        y: ``(M, D)``, same dtype and device.
        kernel: as in ``mmd2``; a mean bandwidth is one for all permutations.
        permutations: number of random permutations.
        generator: draws them, on its own device; None means torch's default generator of the
            device of the samples. One on the CPU draws the same permutations for samples anywhere.

    Returns:
        ``(statistic, p_value, null)``: the biased MMD^2 of ``mmd2``, the p-value, and the MMD^2
        of every random permutation.

    Raises:
        TypeError, ValueError: for invalid arguments, with what was expected and given.
    """
    check_test(x, y, [kernel])
    check_count("permutations", permutations)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        members = draw_members(len(x), len(y), permutations, x.device, generator).to(x.device)
        values = _compute_permuted_mmd2(x, y, members, kernel)
        statistic, null = values[0], values[1:]
        # one split of the rows may be drawn again, and be summed in another order
        slack = 1e-6 * (statistic.abs() + null.abs().mean())
        larger = int((null >= statistic - slack).sum())
    dtype = accumulator_dtype(x.dtype)
    p_value = (1 + larger) / (1 + permutations)
    return PermutationTest(statistic.to(dtype), p_value, null.to(dtype))


def check_test(x: Tensor, y: Tensor, kernels: Sequence[Kernel]) -> None:
    """Refuse samples with batch dimensions, and what is not a kernel."""
    checks.check_samples(x, y)
    for kernel in kernels:
        checks.check_kernel(kernel)
    if x.ndim != 2:
        raise ValueError(f"x, y: expected (N, D) and (M, D), got {tuple(x.shape)}")


def check_count(label: str, given: int, least: int = 1) -> None:
    """Refuse anything but an integer of at least ``least``."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{label}: expected an int, got {given!r}")
    if given < least:
        raise ValueError(f"{label}: expected at least {least}, got {given}")


def draw_members(
    n: int, m: int, permutations: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw the rows of the first sample, (1 + permutations, n + m), bool; [0] are those of x.

    On a GPU all permutations are sorted at once: one by one, each would wait for a launch.
    """
    if generator is not None:
        device = generator.device
    members = torch.zeros(1 + permutations, n + m, dtype=torch.bool, device=device)
    members[0, :n] = True
    if device.type == "cpu":
        for row in members[1:]:
            row[torch.randperm(n + m, generator=generator)[:n]] = True
        return members
    for rows in members[1:].split(max(1, SORTED_KEYS // (n + m))):
        _choose_rows(rows, n, generator)
    return members


def _choose_rows(members: Tensor, n: int, generator: torch.Generator | None) -> None:
    """Set n random elements of each row of ``members``, (B, R): those with the smallest keys."""
    # float64, so that keys are different
    keys = torch.rand(
        members.shape, dtype=torch.float64, device=members.device, generator=generator
    )
    members.scatter_(1, keys.argsort(1)[:, :n], True)


def _compute_permuted_mmd2(x: Tensor, y: Tensor, members: Tensor, kernel: Kernel) -> Tensor:
    """Compute MMD^2 of every permutation, (B,) float64, with Triton where it serves."""
    if not isinstance(kernel, OWN_PATH):
        n, m = len(x), len(y)
        with full_float32(x.device):
            (sums,) = sum_pairs(members if n <= m else ~members, x, y, [kernel])
        return sums.mmd2(min(n, m), max(n, m))
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    checks.check_bandwidth(bandwidth, x)
    arguments = OpArguments(x, y, bandwidth, None, None, name, parameters, False, None)
    dispatch = ops.load_dispatch() if x.is_cuda else None
    if dispatch is not None and dispatch.serves(x, y, name):
        values: Tensor = dispatch.permuted_mmd2_cuda(members, arguments)
        return values
    if not x.is_cuda:
        checks.check_values(arguments)
    with full_float32(x.device):
        return permuted_mmd2(members, arguments)


def permuted_mmd2(members: Tensor, arguments: OpArguments) -> Tensor:
    """MMD^2 (biased) of permutations of the rows [x; y], in plain torch, (B,) float64.

    Args:
        members: ``(B, N + M)``, bool: the rows that make up the first sample, N of them.
        arguments: x ``(N, D)`` and y ``(M, D)``, which give the bandwidth of all permutations.
    """
    x, y, bandwidth = arguments.x, arguments.y, arguments.bandwidth
    rule = Rule(arguments.kernel, arguments.parameters, False)
    samples = [blocks.split_sample(points[None], None) for points in (x, y)]
    width = None
    if rule.name != "polynomial":
        width = blocks.centre(samples[0], samples[1])
    if rule.name == "linear":
        rule = Rule("polynomial", (1.0, 1.0, 0.0), False)
    elif rule.name == "gaussian":
        dtype = accumulator_dtype(x.dtype)
        width = None if bandwidth is None else prepare_bandwidth(bandwidth.reshape(1), dtype)
    n, m = len(x), len(y)
    # sums over pairs of the other sample cancel, so the smaller sample is the one indicated
    indicators = members if n <= m else ~members
    sums = PairSums(indicators)
    for tile in tiles.iterate_tiles(samples, [False, False], value=True):
        k, _ = tiles.evaluate_kernel(tile, rule, width, value=True, slope=False)
        assert k is not None
        a_rows = _stack_rows(samples, tile.a, tile.a_rows)
        sums.add(k[0], a_rows, _stack_rows(samples, tile.b, tile.b_rows))
    return sums.mmd2(min(n, m), max(n, m))


def _stack_rows(
    samples: list[blocks.BlockedSample], sample: blocks.BlockedSample, rows: slice
) -> slice:
    """The rows of [x; y] that rows of a sample are."""
    offset = 0 if sample is samples[0] else samples[0].points.shape[1]
    return slice(rows.start + offset, rows.stop + offset)
