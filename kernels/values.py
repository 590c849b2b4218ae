"""Checks of what is in a tensor, made where reading it stalls nothing: inside the CPU kernel."""

from torch import Tensor


def check(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    *,
    unbiased: bool,
) -> None:
    """Raise ValueError for a bandwidth or lengths that have no meaning."""
    if bandwidth is not None:
        check_bandwidth(bandwidth)
    for name, points, lengths in (("x_lengths", x, x_lengths), ("y_lengths", y, y_lengths)):
        if lengths is not None and lengths.numel():
            _check_lengths(name, lengths, points.shape[-2], unbiased)


def check_bandwidth(bandwidth: Tensor) -> None:
    """Raise ValueError unless every bandwidth is positive and finite."""
    if not ((bandwidth > 0) & bandwidth.isfinite()).all():
        raise ValueError(f"bandwidth: expected positive finite numbers, got {bandwidth.tolist()}")


def _check_lengths(name: str, lengths: Tensor, rows: int, unbiased: bool) -> None:
    low, high = (int(end) for end in lengths.aminmax())
    if low < 1 or high > rows:
        raise ValueError(f"{name}: expected 1 to {rows} (the rows there are), got {low} to {high}")
    if unbiased and low < 2:
        raise ValueError(f"{name}: the unbiased estimator needs at least 2 rows, got {low}")
