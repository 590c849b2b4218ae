"""Who serves what: the table of families and tiles, and where plain torch takes over."""

import itertools
import logging
import sys

import pytest
import torch

from m3d_fast.kernels import _launch, ops, reference
from m3d_fast.kernels._configs import config
from m3d_fast.kernels._table import Problem, choose, products


def problem(**changes) -> Problem:
    given = {
        "classes": 3,
        "rows_x": 700,
        "rows_y": 300,
        "columns": 4096,
        "kernel": "gaussian",
        "precision": "highest",
        "value": True,
        "grad_x": False,
        "grad_y": True,
    }
    return Problem(**{**given, **changes})


def test_some_family_serves_everything():
    kinds = itertools.product(
        (1, 100), (1, 5000), (1, 5000), (1, 33, 100_000), ("gaussian", "polynomial"), (0, 1), (0, 1)
    )
    for classes, n, m, d, kernel, grad_x, grad_y in kinds:
        asked = problem(
            classes=classes,
            rows_x=n,
            rows_y=m,
            columns=d,
            kernel=kernel,
            grad_x=bool(grad_x),
            grad_y=bool(grad_y),
        )
        assert choose(asked) in _launch.FAMILIES


def test_value_alone_keeps_no_matrix():
    asked = problem(rows_x=50_000, rows_y=50_000, columns=1024, grad_y=False)
    assert choose(asked) == "value"


@pytest.mark.parametrize("kernel", ["tile.weights_kernel", "tile.pull_kernel", "value.sums_kernel"])
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("columns", [8, 512])
@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 100, 120])
def test_generic_kernels_have_tiles_for_every_chip(kernel, precision, columns, architecture):
    found = config(kernel, products(precision, columns), architecture)
    assert found.kernel == kernel
    assert min(found.architectures) <= architecture


def test_triton_leaves_to_torch_what_it_cannot_do_better(monkeypatch, triton_device):
    x = torch.zeros(2, 3, 4, device=triton_device)
    assert _launch.served(x, x, "gaussian")
    assert not _launch.served(x.double(), x, "gaussian")
    assert not _launch.served(x, x, "linear")
    assert not _launch.served(x[:0], x[:0], "gaussian")
    monkeypatch.setattr(_launch, "refused", lambda device: "too old")
    assert not _launch.served(x, x, "gaussian")


def arguments(x: torch.Tensor, y: torch.Tensor) -> tuple:
    scales = [0.25, 0.5, 1.0, 2.0, 4.0]
    return x, y, None, None, None, "gaussian_mean", scales, False, "highest", True, False, True


def plain_torch(x: torch.Tensor, y: torch.Tensor) -> reference.Result:
    rule = reference.Rule("gaussian_mean", arguments(x, y)[6], False)
    return reference.mmd2(x, y, rule, grad_y=True)


def test_an_old_chip_is_served_by_torch_and_says_so_once(
    monkeypatch, caplog, generator, triton_device
):
    monkeypatch.setattr(_launch, "architecture", lambda device: 75)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Old Chip")
    _launch.refused.cache_clear()
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            value, _, grad_y = ops._cuda(*arguments(x, y))
    _launch.refused.cache_clear()
    assert [record.message for record in caplog.records] == [
        "mmd2 runs as plain torch: An Old Chip is older than compute capability 8.0"
    ]
    expected = plain_torch(x, y)
    torch.testing.assert_close(value, expected.value)
    torch.testing.assert_close(grad_y, expected.grad_y)


def test_without_triton_torch_serves_and_says_so_once(
    monkeypatch, caplog, generator, triton_device
):
    monkeypatch.setitem(sys.modules, "triton", None)
    ops._launcher.cache_clear()
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            value, _, _ = ops._cuda(*arguments(x, y))
    ops._launcher.cache_clear()
    assert len(caplog.records) == 1
    assert "mmd2 runs as plain torch" in caplog.text
    torch.testing.assert_close(value, plain_torch(x, y).value)


def test_the_op_on_cuda_is_the_triton_one(generator, truth, triton_device):
    """The registered function itself, in the interpreter."""
    x, y = torch.randn(2, 2, 2, 9, 5, generator=generator)  # two batch dimensions
    exact = truth.exact(x, y)
    value, grad_x, grad_y = ops._cuda(*arguments(x.to(triton_device), y.to(triton_device)))
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)
    assert grad_x.numel() == 0


def test_a_transposed_sample_is_read_right(generator, truth, triton_device):
    x = torch.randn(2, 5, 9, generator=generator).mT
    y = torch.randn(1, 7, 5, generator=generator).expand(2, 7, 5)
    exact = truth.exact(x, y)
    value, _, grad_y = ops._cuda(*arguments(x.to(triton_device), y.to(triton_device)))
    truth.assert_value(value, exact.value)
    truth.assert_gradient(grad_y, exact.grad_y)


def test_nothing_asked_is_nothing_given(generator, triton_device):
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    outputs = ops._cuda(*arguments(x, y)[:9], False, False, False)
    assert [output.numel() for output in outputs] == [0, 0, 0]
