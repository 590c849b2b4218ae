"""The metrics of torchmetrics: states, reset, ranks, dtypes; and the published numbers."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from m3d_fast import adapters
from m3d_fast.kernels import CMMD

# torchmetrics takes seconds to import, which only the process of these tests needs
pytestmark = pytest.mark.skipif(find_spec("torchmetrics") is None, reason="needs torchmetrics")


def published_kid(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased MMD^2 of (a.b / D + 1)^3, as in torchmetrics' poly_mmd."""
    k_xx, k_yy, k_xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    m = len(x)
    within = k_xx.sum() - k_xx.diag().sum() + k_yy.sum() - k_yy.diag().sum()
    return within / (m * (m - 1)) - 2 * k_xy.mean()


@pytest.fixture
def features(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    real = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    return real, torch.randn(50, 8, generator=generator, dtype=torch.float64) + 0.3


def test_kid_takes_the_subsets_that_torchmetrics_takes(features):
    real, fake = features
    metric = adapters.KernelInceptionDistance(subsets=3, subset_size=20)
    for start in range(0, 60, 25):
        metric.update(real[start : start + 25], real=True)
        metric.update(fake[start : start + 25], real=False)
    torch.manual_seed(3)
    mean, std = metric.compute()
    torch.manual_seed(3)
    scores = torch.stack(
        [
            published_kid(real[torch.randperm(60)[:20]], fake[torch.randperm(50)[:20]])
            for _ in range(3)
        ]
    )
    torch.testing.assert_close(mean, scores.mean())
    torch.testing.assert_close(std, scores.std(unbiased=False))


@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save")
def test_it_is_that_of_torchmetrics(features):
    host = pytest.importorskip("torchmetrics.image.kid")
    theirs = host.KernelInceptionDistance(torch.nn.Identity(), subsets=4, subset_size=30)
    ours = adapters.KernelInceptionDistance(subsets=4, subset_size=30)
    for metric in (ours, theirs):
        metric.update(features[0], real=True)
        metric.update(features[1], real=False)
    results = []
    for metric in (ours, theirs):
        torch.manual_seed(1)
        results.append(torch.stack(metric.compute()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("keep", [True, False])
def test_reset_keeps_real_features_if_asked(keep, features):
    metric = adapters.CLIPMaximumMeanDiscrepancy(reset_real_features=not keep)
    metric.update(features[0], real=True)
    metric.update(features[1], real=False)
    before = metric.compute()
    metric.reset()
    assert metric.fake_features == []
    assert len(metric.real_features) == keep
    if keep:
        metric.update(features[1], real=False)
        torch.testing.assert_close(metric.compute(), before)


def test_ranks_gather_their_features(features):
    """What torchmetrics gathers on every rank is the list of the features of all."""
    whole = CMMD()
    whole.update(features[0], real=True)
    whole.update(features[1], real=False)

    def gather(tensor: Tensor, group: object = None) -> list[Tensor]:
        """This rank's rows, and those of another one that has the others."""
        return [tensor, features[0 if len(tensor) == 30 else 1][1::2]]

    metric = adapters.CLIPMaximumMeanDiscrepancy(
        dist_sync_fn=gather, distributed_available_fn=lambda: True
    )
    for start in (0, 20):
        metric.update(features[0][0::2][start : start + 20], real=True)
        metric.update(features[1][0::2][start : start + 20], real=False)
    torch.testing.assert_close(metric.compute(), whole.compute())
    assert len(metric.real_features) == 2


def test_dtype_and_state_follow_the_module(features):
    metric = adapters.CLIPMaximumMeanDiscrepancy()
    metric.update(features[0], real=True)
    metric.update(features[1], real=False)
    exact = metric.compute()
    metric.set_dtype(torch.float32)
    assert metric.real_features[0].dtype == torch.float32
    metric._computed = None
    assert metric.compute().dtype == torch.float32
    torch.testing.assert_close(metric.compute().double(), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (torch.ones(2, 3, 8, 8), r"features: expected \(n, D\), .*, got \(2, 3, 8, 8\)"),
        (torch.ones(2, 3).byte(), "features: expected a floating-point tensor, got torch.uint8"),
        (torch.ones(2, 3), "features: expected D = 8, got 3"),
        (torch.ones(2, 8, device="meta"), "features: expected device cpu, got meta"),
    ],
)
def test_images_and_other_features_are_refused(given, words, features):
    metric = adapters.KernelInceptionDistance()
    metric.update(features[0], real=True)
    with pytest.raises(ValueError, match=words):
        metric.update(given, real=False)


def test_fewer_samples_than_a_subset_are_refused(features):
    metric = adapters.KernelInceptionDistance(subsets=1, subset_size=70)
    metric.update(features[0], real=True)
    with pytest.raises(ValueError, match="real features: expected at least 70 rows, got 60"):
        metric.compute()
    with pytest.raises(ValueError, match="subset_size: expected at least 2, got 1"):
        adapters.KernelInceptionDistance(subset_size=1)
