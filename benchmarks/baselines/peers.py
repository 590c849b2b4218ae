"""Other implementations of the op: those in use, and the best that plain torch can do.

Features are ``real`` (C, N, D) and ``synthetic`` (C, M, D); a peer with a gradient returns the loss
per class, (C,), and the gradient in ``synthetic``.
"""

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.baselines.published import SCALES, stacked_loss
from m3d_fast.kernels import reference

M3D_RULE = reference.Rule("gaussian_mean", SCALES, unbiased=False)
Peer = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OpOrPeer = Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor]]  # the op may omit the value


def import_optional(name: str) -> ModuleType | None:
    """A peer's package, or None after a line that names it as not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: left out")
        return None


def differentiate(loss: Callable[[Tensor, Tensor], Tensor]) -> Peer:
    """Loss per class by ``loss``, and autograd's gradient of their sum."""

    def peer(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        leaf = synthetic.detach().requires_grad_()
        losses = loss(real, leaf)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), gradient

    return peer


def loop_losses(real: Tensor, synthetic: Tensor) -> Tensor:
    """Losses class by class, which the published code sums before one backward pass."""
    return torch.stack([stacked_loss(x, y) for x, y in zip(real, synthetic, strict=True)])


def indexed_losses(real: Tensor, synthetic: Tensor) -> Tensor:
    """The same loop with every class indexed from one tensor, as in the published code.

    For each class autograd then writes a gradient as large as the whole tensor.
    """
    return torch.stack([stacked_loss(real[c], synthetic[c]) for c in range(len(real))])


def loop_of_backwards(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """The same loop with a backward pass per class, so that one graph is in memory at a time."""
    peer = differentiate(stacked_loss)
    parts = [peer(x, y) for x, y in zip(real, synthetic, strict=True)]
    losses, gradients = zip(*parts, strict=True)
    return torch.stack(losses), torch.stack(gradients)


def batched_losses(real: Tensor, synthetic: Tensor) -> Tensor:
    """The stacked loss for all classes at once."""
    stacked = torch.cat([synthetic, real], 1)
    squared = torch.cdist(stacked, stacked) ** 2
    n, m = stacked.shape[1], synthetic.shape[1]
    bandwidth = squared.detach().sum((1, 2), keepdim=True) / (n * n - n)
    kernel = torch.stack([torch.exp(-squared / (bandwidth * scale)) for scale in SCALES]).sum(0)
    within = kernel[:, :m, :m].mean((1, 2)) + kernel[:, m:, m:].mean((1, 2))
    return within - 2 * kernel[:, :m, m:].mean((1, 2))


def closed_form(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """The closed form of ``m3d_fast.kernels.reference`` in plain batched torch."""
    result = reference.mmd2(real, synthetic, M3D_RULE, grad_y=True)
    assert result.value is not None
    assert result.grad_y is not None
    return result.value, result.grad_y


def multiply_only(real: Tensor, synthetic: Tensor) -> None:
    """The matrix products of a value and a gradient, in the fewest calls, on rows in cache.

    A lower bound on the time of any closed form in plain torch.
    """
    stacked = torch.cat([real[:1], synthetic[:1]], 1)[0]
    n, m = real.shape[1], synthetic.shape[1]
    weights = torch.ones(m, n + m, device=real.device)
    out = torch.empty_like(synthetic[0])
    for _ in range(len(real)):
        torch.mm(stacked[:n], stacked[:n].T)
        torch.mm(stacked[n:], stacked.T)
        torch.mm(weights, stacked, out=out)


def published_cmmd(x: Tensor, y: Tensor) -> Tensor:
    """CMMD as in the released code of arXiv 2401.09603."""
    gamma = 1 / (2 * 10**2)
    x_squares, y_squares = torch.diag(x @ x.T), torch.diag(y @ y.T)

    def mean_k(a: Tensor, a_squares: Tensor, b: Tensor, b_squares: Tensor) -> Tensor:
        return torch.exp(-gamma * (-2 * a @ b.T + a_squares[:, None] + b_squares[None, :])).mean()

    within = mean_k(x, x_squares, x, x_squares) + mean_k(y, y_squares, y, y_squares)
    return 1000 * (within - 2 * mean_k(x, x_squares, y, y_squares))


def published_kid(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased polynomial MMD^2 of one subset, as in the released code of arXiv 1801.01401."""
    m, columns = x.shape
    k_xx, k_yy, k_xy = ((a @ b.T / columns + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = k_xx.sum() - k_xx.diag().sum() + k_yy.sum() - k_yy.diag().sum()
    return within / (m * (m - 1)) - 2 * k_xy.mean()


def sklearn_value(x: Tensor, y: Tensor) -> float:
    """The M3D value from scikit-learn's distances and kernels, float64, one class."""
    pairwise = importlib.import_module("sklearn.metrics.pairwise")
    z = torch.cat([x, y]).double().numpy()
    bandwidth = pairwise.euclidean_distances(z, squared=True).sum() / (len(z) ** 2 - len(z))
    a, b = z[: len(x)], z[len(x) :]
    value = 0.0
    for scale in SCALES:
        gamma = 1 / (bandwidth * scale)
        within = (
            pairwise.rbf_kernel(a, gamma=gamma).mean() + pairwise.rbf_kernel(b, gamma=gamma).mean()
        )
        value += within - 2 * pairwise.rbf_kernel(a, b, gamma=gamma).mean()
    return value


def make_geomloss_peer(geomloss: ModuleType, backend: str = "tensorized") -> Peer:
    """Gaussian MMD by GeomLoss, whose loss is MMD^2 / 2, at five blurs ("online": by KeOps)."""

    def losses(real: Tensor, synthetic: Tensor) -> Tensor:
        n = real.shape[1] + synthetic.shape[1]
        stacked = torch.cat([real, synthetic], 1).detach()
        spread = (stacked - stacked.mean(1, keepdim=True)).square().sum((1, 2))
        blurs = (spread / (n - 1)).sqrt()  # bandwidth = 2 sigma^2
        totals = []
        for x, y, blur in zip(real, synthetic, blurs.tolist(), strict=True):
            kernels = [
                geomloss.SamplesLoss("gaussian", blur=blur * scale**0.5, backend=backend)
                for scale in SCALES
            ]
            totals.append(2 * torch.stack([kernel(y, x).reshape(()) for kernel in kernels]).sum())
        return torch.stack(totals)

    return differentiate(losses)


def find_libraries() -> Iterator[tuple[str, Peer]]:
    """Installed libraries that compute the loss of M3D and its gradient."""
    geomloss = import_optional("geomloss")
    if geomloss:
        yield "geomloss", make_geomloss_peer(geomloss)
        if import_optional("pykeops"):
            yield "KeOps by geomloss", make_geomloss_peer(geomloss, "online")


def make_torchmetrics_kid(
    x: Tensor, y: Tensor, subsets: int, subset_size: int
) -> Callable[[], Tensor] | None:
    """Mean KID by torchmetrics, of features, by an identity network; None if not installed."""
    if not import_optional("torchmetrics"):
        return None
    image = importlib.import_module("torchmetrics.image.kid")
    metric = image.KernelInceptionDistance(
        torch.nn.Identity(), subsets=subsets, subset_size=subset_size
    ).to(x.device)
    metric.update(x, real=True)
    metric.update(y, real=False)

    def compute_again() -> Tensor:
        metric._computed = None  # the cached result
        return metric.compute()[0]

    return compute_again


def make_clean_fid_kid(
    x: Tensor, y: Tensor, subsets: int, subset_size: int
) -> Callable[[], float] | None:
    """Mean KID by clean-fid's NumPy code, of features; None if not installed."""
    fid = import_optional("cleanfid.fid")
    if fid is None:
        return None
    features = x.cpu().numpy(), y.cpu().numpy()
    return lambda: fid.kernel_distance(*features, subsets, subset_size)


def make_alibi_drift(x: Tensor, y: Tensor, permutations: int) -> Callable[[], object] | None:
    """A prediction of alibi-detect's MMDDrift with its torch back end; None if not installed."""
    cd = import_optional("alibi_detect.cd")
    if cd is None:
        return None
    reference_rows, rows = x.cpu().numpy(), y.cpu().numpy()
    detector = cd.MMDDrift(reference_rows, backend="pytorch", n_permutations=permutations)
    return lambda: detector.predict(rows)


def energy_by_cdist(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The energy distance of ``x`` (N, D) and ``y`` (M, D) from three matrices, and its gradient.

    The gradient of ``torch.cdist`` at coincident points is zero.
    """
    leaf = y.detach().requires_grad_()
    value = 2 * torch.cdist(x, leaf).mean() - torch.cdist(x, x).mean()
    value = value - torch.cdist(leaf, leaf).mean()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def make_geomloss_energy(backend: str = "tensorized") -> Peer | None:
    """The energy distance by GeomLoss, whose loss is half of it; None if not installed."""
    geomloss = import_optional("geomloss")
    if geomloss is None:
        return None
    loss = geomloss.SamplesLoss("energy", backend=backend)

    def peer(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        leaf = y.detach().requires_grad_()
        value = 2 * loss(leaf, x)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    return peer


def gather_null(x: Tensor, y: Tensor, orders: list[Tensor]) -> Tensor:
    """Null distribution by permuting the rows and columns of K, as drift detectors do."""
    z = torch.cat([x, y])
    squared = torch.cdist(z, z) ** 2
    bandwidth = squared.sum() / (len(z) ** 2 - len(z))
    kernel = torch.stack([torch.exp(-squared / (bandwidth * scale)) for scale in SCALES]).sum(0)
    n = len(x)
    values = []
    for order in orders:
        k = kernel[order][:, order]
        values.append(k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean())
    return torch.stack(values)
