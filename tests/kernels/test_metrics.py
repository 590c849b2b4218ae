"""CMMD and KID against the published formulations, in float64, and their streaming."""

import math

import pytest
import torch
from torch import Tensor

from m3d_fast.kernels import CMMD, KID, Polynomial


def unit(rows: int, generator: torch.Generator, shift: float = 0.0) -> Tensor:
    points = torch.randn(rows, 64, generator=generator) + shift
    return torch.nn.functional.normalize(points, dim=-1)


def published_cmmd(x: Tensor, y: Tensor) -> float:
    """Line by line what arXiv 2401.09603 releases, in float64."""
    x, y = x.double(), y.double()
    gamma = 1 / (2 * 10**2)
    x_squares, y_squares = torch.diag(x @ x.T), torch.diag(y @ y.T)

    def mean_k(a: Tensor, a_squares: Tensor, b: Tensor, b_squares: Tensor) -> Tensor:
        return torch.exp(-gamma * (-2 * a @ b.T + a_squares[:, None] + b_squares[None, :])).mean()

    within = mean_k(x, x_squares, x, x_squares) + mean_k(y, y_squares, y, y_squares)
    return 1000 * (within - 2 * mean_k(x, x_squares, y, y_squares)).item()


def published_kid(x: Tensor, y: Tensor) -> float:
    """The unbiased estimator of arXiv 1801.01401, one pair of rows at a time, in float64."""
    x, y = x.double(), y.double()

    def k(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b / len(a) + 1) ** 3

    m = len(x)
    within_x = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j)
    between = sum(k(a, b) for a in x for b in y)
    return float((within_x + within_y) / (m * (m - 1)) - 2 * between / m**2)


def test_cmmd_is_the_published_number(generator):
    real, generated = unit(700, generator), unit(500, generator, 0.05)
    metric = CMMD()
    metric.update(real, real=True)
    metric.update(generated, real=False)
    expected = published_cmmd(real, generated)
    # in float32 the published formula is off by 1e-4 at this size
    assert metric.compute().item() == pytest.approx(expected, abs=1e-6)


def test_kid_of_whole_samples_is_the_published_number(generator):
    real, generated = unit(25, generator) * 3, unit(25, generator, 0.2) * 3
    metric = KID(subsets=3, subset_size=25)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    mean, std = metric.compute()
    assert mean.item() == pytest.approx(published_kid(real, generated), abs=1e-6)
    assert std.item() == pytest.approx(0, abs=1e-7)


def test_kid_over_subsets_is_their_mean_and_population_deviation():
    """The definition, with the same draws: real rows first, subset by subset."""
    points = torch.Generator().manual_seed(1)
    real, generated = unit(60, points), unit(40, points, 0.3)
    metric = KID(subsets=4, subset_size=12, generator=torch.Generator().manual_seed(7))
    metric.update(real, real=True)
    metric.update(generated, real=False)
    mean, std = metric.compute()
    again = torch.Generator().manual_seed(7)
    scores = []
    for _ in range(4):
        x = real[torch.randperm(60, generator=again)[:12]]
        scores.append(published_kid(x, generated[torch.randperm(40, generator=again)[:12]]))
    assert mean.item() == pytest.approx(sum(scores) / 4, abs=1e-6)
    spread = math.sqrt(sum((s - sum(scores) / 4) ** 2 for s in scores) / 4)
    assert std.item() == pytest.approx(spread, abs=1e-6)


def test_kid_is_unbiased(generator):
    """Around zero for two samples of one distribution, where the biased estimate is not."""
    metric = KID(subsets=200, subset_size=20, generator=generator)
    metric.update(unit(2000, generator), real=True)
    metric.update(unit(2000, generator), real=False)
    mean, std = metric.compute()
    assert abs(mean.item()) < 4 * std.item() / math.sqrt(200)


def compute(metric: CMMD | KID) -> Tensor:
    result = metric.compute()
    return result if isinstance(result, Tensor) else torch.stack(result)


@pytest.mark.parametrize("metric", [CMMD(), KID(subsets=1, subset_size=90)], ids=["CMMD", "KID"])
def test_streaming_in_any_pieces_gives_the_same(metric, generator):
    real, generated = unit(90, generator), unit(90, generator, 0.1)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    whole = compute(metric)
    metric.reset()
    for start in range(0, 90, 17):
        metric.update(generated[start : start + 17], real=False)
        metric.update(real[start : start + 17], real=True)
    for _ in range(2):
        torch.testing.assert_close(compute(metric), whole, rtol=0, atol=2e-6)


def test_features_are_kept_when_the_buffer_changes(generator):
    metric = CMMD()
    buffer = unit(30, generator)
    metric.update(buffer, real=True)
    metric.update(buffer, real=False)
    buffer.zero_()
    assert abs(metric.compute().item()) < 1e-6
    metric.update(buffer, real=False)
    assert metric.compute().item() > 1e-3


def test_no_graph_is_kept(generator):
    metric = CMMD()
    features = unit(10, generator).requires_grad_()
    metric.update(features, real=True)
    metric.update(features, real=False)
    assert not metric.compute().requires_grad


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (
            TypeError,
            "features: expected a floating",
            lambda m: m.update(torch.ones(2, 3).int(), True),
        ),
        (TypeError, "real: expected a bool", lambda m: m.update(torch.ones(2, 3), 1)),
        (ValueError, r"features: expected \(n, D\)", lambda m: m.update(torch.ones(3), True)),
        (ValueError, "expected D = 64, got 3", lambda m: m.update(torch.ones(2, 3), False)),
        (ValueError, "generated features: expected at least", lambda m: m.compute()),
    ],
    ids=["dtype", "flag", "shape", "columns", "missing"],
)
@pytest.mark.parametrize("kind", [CMMD, KID])
def test_invalid_input_is_refused(kind, error, words, call, generator):
    metric = kind()
    metric.update(unit(1000, generator), real=True)
    with pytest.raises(error, match=words):
        call(metric)


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_size": 1}], ids=str)
def test_kid_refuses_too_few(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KID(**options)


def test_kid_takes_another_polynomial(generator):
    linear = KID(subsets=1, subset_size=30, kernel=Polynomial(1, gamma=1.0, coef0=0.0))
    real, generated = unit(30, generator).double(), unit(30, generator, 0.5).double()
    linear.update(real, real=True)
    linear.update(generated, real=False)
    difference = (real.mean(0) - generated.mean(0)).square().sum()
    variances = (real.var(0).sum() + generated.var(0).sum()) / 30
    torch.testing.assert_close(linear.compute().mean, difference - variances)
