"""Every loss and its gradient in the pixels, against a plain loop over classes in float64."""

from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import methods as plain
from m3d_fast.methods import add_terms, build_method
from m3d_fast.methods.protocol import Method
from tests.helpers.networks import Float64Network, build_small

LABELS = [4, 0, 7]


def make_images() -> tuple[Tensor, Tensor]:
    """Real and synthetic images of three classes."""
    stream = torch.Generator().manual_seed(3)
    real, synthetic = (
        torch.randn(3, count, 1, 16, 16, dtype=torch.float64, generator=stream) for count in (5, 4)
    )
    return real, synthetic.requires_grad_()


def read_and_compare(
    method: Method, network: Float64Network, real: Tensor, synthetic: Tensor, value: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Terms ``(k, T)`` and the gradient in the synthetic images."""
    labels = torch.tensor(LABELS)
    with torch.no_grad():
        target = method.probe(network, real, labels)
    reading = method.probe_synthetic(network, synthetic, labels)
    losses, objective = method.losses(target, reading, value)
    (gradient,) = torch.autograd.grad(objective, synthetic)
    return losses, gradient


def assert_same(
    method: Method, network: Float64Network, expected: Tensor, real: Tensor, synthetic: Tensor
) -> None:
    """Terms and gradient to 1e-5 of the largest; the gradient also without the value."""
    losses, gradient = read_and_compare(method, network, real, synthetic)
    assert losses is not None
    assert losses.shape == (3, len(method.terms))
    assert not losses.requires_grad
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-7)
    (exact,) = torch.autograd.grad(expected.sum(), synthetic)
    _, alone = read_and_compare(method, network, real, synthetic, value=False)
    for ours in (gradient, alone):
        assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()


CASES = {
    "dm": ("dm", {}, plain.dm),
    "dm-mmd": ("dm", {"matching": "mmd"}, plain.m3d),
    "m3d": ("m3d", {}, plain.m3d),
    "moments": ("moments", {}, plain.moments),
    "ddm": ("ddm", {}, plain.ddm),
    "datadam": ("datadam", {}, plain.datadam),
    "datadam-squares": ("datadam", {"power": 2}, partial(plain.datadam_of_power, 2)),
    "datadam-fourth": ("datadam", {"power": 4}, partial(plain.datadam_of_power, 4)),
    "idm": ("idm", {}, plain.idm),
    "idm-mmd": ("idm", {"matching": "mmd"}, plain.idm_by_mmd),
    "dance": ("dance", {}, plain.dance),
    "dc": ("dc", {}, plain.dc),
    "dsa": ("dsa", {}, plain.dc),
    "idc": ("idc", {}, plain.idc),
    "idc-squares": ("idc", {"distance": "mse"}, plain.idc_by_squares),
    "ncfm": ("ncfm", {}, plain.ncfm),
    "ncfm-weights": ("ncfm", {"alpha": 0.2, "beta": 0.7}, partial(plain.ncfm_weighted, 0.2, 0.7)),
    "ncfm-exact": ("ncfm", {"exact": "1"}, plain.ncfm_exactly),
}


@pytest.mark.parametrize("case", CASES)
def test_terms_and_gradient_are_those_of_a_plain_loop(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, options, loss = CASES[case]
    network = build_small(monkeypatch, frequencies=9)
    real, synthetic = make_images()
    networks = plain.Networks(
        network.module, network.expert.module, network.accuracy, network.noise
    )
    expected = plain.loop_losses(loss, networks, real, synthetic, LABELS)
    assert_same(build_method(name, options), network, expected, real, synthetic)


def test_cafe_is_that_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_small(monkeypatch)
    real, synthetic = make_images()
    networks = plain.Networks(network.module, network.module, network.accuracy, network.noise)
    expected = plain.cafe_losses(networks, real, synthetic)
    assert_same(build_method("cafe", {}), network, expected, real, synthetic)


def test_cafes_last_weight_serves_further_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_small(monkeypatch)
    real, synthetic = make_images()
    ends = [
        read_and_compare(build_method("cafe", {"weights": text}), network, real, synthetic)
        for text in ("0.5,2", "0.5,2,2,2", "0.5,2,2,2,9")
    ]
    for losses, gradient in ends[1:]:
        assert torch.equal(losses, ends[0][0])
        assert torch.equal(gradient, ends[0][1])


def test_gradients_in_pieces_average_to_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, method = build_small(monkeypatch), build_method("dc", {})
    real, _ = make_images()
    labels = torch.tensor(LABELS)
    whole = method.probe(network, real, labels).mean
    parts = [method.probe(network, part, labels).mean for part in real.split([2, 3], 1)]
    assert [tuple(part.shape) for part in whole] == [
        *[(3, 6, 1, 3, 3), (3, 6, 6, 3, 3), (3, 6, 6, 3, 3)],
        (3, 10, 24),
    ]
    for all_images, two, three in zip(whole, *parts, strict=True):
        torch.testing.assert_close(0.4 * two + 0.6 * three, all_images)
    alone = method.probe(network, real[1:2], labels[1:2]).mean
    for all_classes, one in zip(whole, alone, strict=True):
        torch.testing.assert_close(one, all_classes[1:2])


def test_a_layer_without_gradient_breaks_no_cosine() -> None:
    method = build_method("dc", {})
    dead = torch.zeros(1, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(method.compare(torch.zeros(1, 2, 3), dead).sum(), dead)
    assert method.compare(torch.zeros(1, 2, 3), dead).item() == 2
    assert gradient.isfinite().all()


@pytest.mark.parametrize("exact", [False, True])
def test_ncfm_of_equal_samples_has_no_gradient(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_small(monkeypatch, frequencies=4)
    real, _ = make_images()
    synthetic = real.clone().requires_grad_()
    method = build_method("ncfm", {"exact": exact, "calibration": 1e-30})
    losses, gradient = read_and_compare(method, network, real, synthetic)
    assert losses[:, 0].max() < 1e-3
    assert gradient.abs().max() < 1e-9


def test_many_frequencies_come_to_the_exact_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of the mean square over frequencies is the exact distance."""
    network = build_small(monkeypatch, frequencies=20_000)
    real, synthetic = make_images()
    labels = torch.tensor(LABELS)
    functions = [
        build_method("ncfm", {}).probe(network, images, labels).mean for images in (real, synthetic)
    ]
    (a, b), (c, d) = functions
    square = ((a - c).square() + (b - d).square()).mean(1)
    losses, _ = read_and_compare(build_method("ncfm", {"exact": True}), network, real, synthetic)
    # a mean over 20,000 draws of a square of coefficient of variation 1: 1 / sqrt(20000) = 0.7 %
    torch.testing.assert_close((losses[:, 0] / 300).square() * 2, square, rtol=0.04, atol=0)


@pytest.mark.parametrize("base", ["m3d", "datadam", "dc", "dm"])
def test_calibration_is_a_column_of_its_own(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_small(monkeypatch)
    real, synthetic = make_images()
    alone = build_method(base, {})
    both = add_terms(alone, {"calibration": 0.25})
    networks = plain.Networks(
        network.module, network.expert.module, network.accuracy, network.noise
    )
    errors = plain.loop_losses(
        lambda _, x, y, label: [plain.calibrate(network.expert.module, y, label)],
        *(networks, real, synthetic, LABELS),
    )
    (added,) = torch.autograd.grad(errors.sum(), synthetic)
    losses, gradient = read_and_compare(both, network, real, synthetic)
    expected, own = read_and_compare(alone, network, real, synthetic)
    torch.testing.assert_close(losses, torch.cat([expected, 0.25 * errors.detach()], 1).to(losses))
    torch.testing.assert_close(gradient, own + 0.25 * added, rtol=1e-5, atol=1e-9)
    _, gradient = read_and_compare(both, network, real, synthetic, value=False)
    torch.testing.assert_close(gradient, own + 0.25 * added, rtol=1e-5, atol=1e-9)
