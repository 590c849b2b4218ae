"""Who serves what: the table of families and tiles, and where plain torch takes over."""

import itertools
import logging
import sys

import pytest
import torch

from m3d_fast.kernels import ops, reference
from m3d_fast.kernels.triton import dispatch
from m3d_fast.kernels.triton.configs import CONFIGS, config
from m3d_fast.kernels.triton.families import Problem, choose, products


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
        assert choose(asked) in dispatch.FAMILIES


def test_value_alone_keeps_no_matrix():
    asked = problem(rows_x=50_000, rows_y=50_000, columns=1024, grad_y=False)
    assert choose(asked) == "value"


# classes, rows of x and of y, columns, and the family of each side of every limit
CHOICES = [
    ((10, 256, 40, 2048), "split"),
    ((100, 64, 90, 512), "small"),
    ((1000, 64, 90, 512), "small"),
    ((10, 128, 90, 8192), "split"),
    ((10, 256, 200, 2048), "split"),
    ((10, 256, 500, 2048), "tile"),
    ((1, 10_000, 10_000, 100), "stream"),
    ((32, 96, 96, 64), "small"),
    ((31, 96, 96, 64), "tile"),
    ((32, 96, 97, 64), "tile"),
    ((31, 256, 256, 128), "split"),
    ((32, 256, 256, 128), "tile"),
    ((31, 256, 257, 128), "tile"),
    ((31, 256, 256, 127), "tile"),
    ((1, 512, 512, 128), "stream"),
    ((1, 512, 511, 128), "tile"),
    ((1, 512, 512, 129), "tile"),
]


@pytest.mark.parametrize("grads", [(True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "polynomial"])
@pytest.mark.parametrize(("shape", "family"), CHOICES, ids=str)
def test_each_family_begins_and_ends_where_the_table_says(shape, family, kernel, grads):
    sizes = dict(zip(("classes", "rows_x", "rows_y", "columns"), shape, strict=True))
    assert choose(problem(**sizes, kernel=kernel, grad_x=grads[0], grad_y=grads[1])) == family
    assert choose(problem(**sizes, kernel=kernel, grad_x=False, grad_y=False)) == "value"


@pytest.mark.parametrize(
    ("precision", "columns", "expected"),
    [
        ("highest", 16, "ieee"),
        ("high", 16, "ieee"),
        ("medium", 16, "bf16"),
        ("highest", 17, "tf32x3"),
        ("high", 17, "bf16x3"),
        ("medium", 17, "bf16"),
    ],
)
def test_precisions_are_multiplied_as_documented(precision, columns, expected):
    assert products(precision, columns) == expected


# the others are of one kind for all chips, or chosen by the size of the samples
BY_CHIP = [own for own in CONFIGS if own.products != "none" and "small." not in own.kernel]


@pytest.mark.parametrize(
    "own", BY_CHIP, ids=lambda own: f"{own.kernel}-{own.products}-{own.architectures[0]}"
)
def test_every_chip_gets_the_newest_tiles_it_can_run(own):
    """So every shipped configuration is used by the first chip it is listed for."""
    assert config(own.kernel, own.products, min(own.architectures)) == own
    others = [c for c in CONFIGS if (c.kernel, c.products) == (own.kernel, own.products)]
    newest = max(min(other.architectures) for other in others)
    assert min(config(own.kernel, own.products, 120).architectures) == newest


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
    assert dispatch.serves(x, x, "gaussian")
    assert not dispatch.serves(x.double(), x, "gaussian")
    assert not dispatch.serves(x, x, "linear")
    assert not dispatch.serves(x[:0], x[:0], "gaussian")
    monkeypatch.setattr(dispatch, "refused", lambda device: "too old")
    assert not dispatch.serves(x, x, "gaussian")


def arguments(x: torch.Tensor, y: torch.Tensor) -> tuple:
    scales = [0.25, 0.5, 1.0, 2.0, 4.0]
    return x, y, None, None, None, "gaussian_mean", scales, False, "highest", True, False, True


def plain_torch(x: torch.Tensor, y: torch.Tensor) -> reference.Result:
    rule = reference.Rule("gaussian_mean", arguments(x, y)[6], False)
    return reference.mmd2(x, y, rule, grad_y=True)


def test_an_old_chip_is_served_by_torch_and_says_so_once(
    monkeypatch, caplog, generator, triton_device
):
    monkeypatch.setattr(dispatch, "architecture", lambda device: 75)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Old Chip")
    dispatch.refused.cache_clear()
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            value, _, grad_y = ops._cuda(*arguments(x, y))
    dispatch.refused.cache_clear()
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
    ops.load_dispatch.cache_clear()
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            value, _, _ = ops._cuda(*arguments(x, y))
    ops.load_dispatch.cache_clear()
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
