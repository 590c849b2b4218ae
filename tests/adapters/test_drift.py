"""MMDDrift: the form of its result, its distance by the formula, its level and its power."""

import sys

import pytest
import torch

from m3d_fast.adapters import MMDDrift
from m3d_fast.kernels import Energy


def test_result_has_the_form_and_the_distance_of_alibi_detect(generator):
    """zero_diag: the unbiased MMD^2, from the matrix of all pairs."""
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 4, generator=generator, dtype=torch.float64) + 1
    drift = MMDDrift(x, sigma=1.5, n_permutations=99, generator=generator).predict(y)
    k = torch.exp(-torch.cdist(torch.cat([x, y]), torch.cat([x, y])).square() / (2 * 1.5**2))
    k = k - k.diag().diag()
    expected = k[:30, :30].sum() / 870 + k[30:, 30:].sum() / 380 - 2 * k[:30, 30:].mean()
    data = drift["data"]
    assert data["distance"] == pytest.approx(expected.item())
    assert data["p_val"] == 0.01
    assert data["threshold"] == 0.05
    assert data["is_drift"] == 1
    assert data["distance"] > data["distance_threshold"] > 0
    few = MMDDrift(x, n_permutations=19).predict(y, return_p_val=False, return_distance=False)
    assert few["data"].keys() == {"is_drift"}
    assert drift["meta"]["name"] == "MMDDrift"


def test_level_and_power(generator):
    """At level 0.1, of 200 tests: 20 without a drift, within four deviations; most with one."""
    counts = {0.0: 0, 1.0: 0}
    for shift in counts:
        for _ in range(200):
            x = torch.randn(16, 2, generator=generator)
            detector = MMDDrift(x, 0.1, n_permutations=39, generator=generator)
            y = torch.randn(24, 2, generator=generator) + shift
            counts[shift] += detector.predict(y)["data"]["is_drift"]
    # p < 0.1 with 39 permutations: 3 of 40 values
    assert abs(counts[0.0] - 15) < 4 * (200 * 0.075 * 0.925) ** 0.5
    assert counts[1.0] > 150


def test_rows_are_made_by_the_callers_function(generator):
    images = torch.rand(20, 3, 4, 4, generator=generator)
    detector = MMDDrift(images, kernel=Energy(), preprocess_fn=lambda one: one.flatten(1))
    assert detector.x_ref.shape == (20, 48)
    assert detector.predict(images)["data"]["is_drift"] == 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: MMDDrift(x[None]), ValueError, r"x_ref: expected .* rows .*, got \(1, 6, 3\)"),
        (lambda x: MMDDrift(x.numpy()), TypeError, "x_ref: expected a floating.*, got ndarray"),
        (lambda x: MMDDrift(x).predict(x[:1]), ValueError, r"x: expected at least 2 rows"),
        (lambda x: MMDDrift(x).predict(x[:, :2]), ValueError, "x, y: expected"),
        (lambda x: MMDDrift(x, 1.5), ValueError, "p_val: expected a number between 0 and 1"),
        (lambda x: MMDDrift(x, sigma=1.0, kernel=Energy()), TypeError, "one of kernel and sigma"),
        (lambda x: MMDDrift(x, n_permutations=0), ValueError, "n_permutations: expected at least"),
    ],
)
def test_invalid_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.randn(6, 3))


def test_a_host_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "m3d_fast.adapters.image_metrics", raising=False)
    from m3d_fast import adapters

    monkeypatch.delitem(vars(adapters), "KernelInceptionDistance", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs torchmetrics .*: pip install"):
        _ = adapters.KernelInceptionDistance
