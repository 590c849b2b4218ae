"""Which kernel family and tiles serve a problem, and what plain torch serves."""

import itertools
import logging
import subprocess
import sys

import pytest
import torch

from m3d_fast.kernels import ops, reference
from m3d_fast.kernels.triton import dispatch
from m3d_fast.kernels.triton.configs import Chip, find_config
from m3d_fast.kernels.triton.families import Problem, choose_family, choose_input_precision
from m3d_fast.kernels.triton.jit.permute import mmd2_permute_sums_kernel
from m3d_fast.kernels.triton.jit.small import mmd2_small_gradient_kernel
from m3d_fast.kernels.triton.jit.tile import mmd2_tile_gradient_kernel, mmd2_tile_weights_kernel
from m3d_fast.kernels.triton.jit.value import mmd2_value_sums_kernel


def problem(**changes) -> Problem:
    given = {
        "classes": 3,
        "rows_x": 700,
        "rows_y": 300,
        "columns": 4096,
        "precision": "highest",
        "value": True,
        "grad_x": False,
        "grad_y": True,
    }
    return Problem(**{**given, **changes})


def test_some_family_serves_everything():
    kinds = itertools.product((1, 100), (1, 5000), (1, 5000), (1, 33, 100_000), (0, 1), (0, 1))
    for classes, n, m, d, grad_x, grad_y in kinds:
        case = problem(
            classes=classes,
            rows_x=n,
            rows_y=m,
            columns=d,
            grad_x=bool(grad_x),
            grad_y=bool(grad_y),
        )
        assert choose_family(case) in dispatch.LAUNCHERS


def test_the_value_alone_needs_no_matrix():
    case = problem(rows_x=50_000, rows_y=50_000, columns=1024, grad_y=False)
    assert choose_family(case) == "value"


# classes, rows of x and of y, columns, and the family on either side of every limit
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
@pytest.mark.parametrize(("shape", "family"), CHOICES, ids=str)
def test_each_family_begins_and_ends_where_the_table_says(shape, family, grads):
    sizes = dict(zip(("classes", "rows_x", "rows_y", "columns"), shape, strict=True))
    assert choose_family(problem(**sizes, grad_x=grads[0], grad_y=grads[1])) == family
    assert choose_family(problem(**sizes, grad_x=False, grad_y=False)) == "value"


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
    assert choose_input_precision(precision, columns) == expected


CHIPS = {
    80: Chip(80, 166912),
    **{architecture: Chip(architecture, 101376) for architecture in (86, 89, 120)},
    **{architecture: Chip(architecture, 232448) for architecture in (90, 100)},
}
# the others multiply nothing, or are chosen by the size of the samples
BY_ARCHITECTURE = [
    own for own in dispatch.CONFIGS if own.input_precision != "none" and "small" not in own.name
]


@pytest.mark.parametrize(
    "own",
    BY_ARCHITECTURE,
    ids=lambda own: f"{own.name}-{own.input_precision}-{own.architectures[0]}",
)
def test_every_architecture_gets_the_newest_tiles_it_can_run(own):
    """So the first architecture that a configuration lists uses it."""
    kind = own.kernel, own.input_precision
    assert find_config(dispatch.CONFIGS, *kind, CHIPS[min(own.architectures)]) == own
    others = [c for c in dispatch.CONFIGS if (c.kernel, c.input_precision) == kind]
    newest = max(min(other.architectures) for other in others)
    assert min(find_config(dispatch.CONFIGS, *kind, CHIPS[100]).architectures) == newest


def test_tiles_that_need_more_shared_memory_than_a_chip_has_are_left_out():
    """A chip of the newest generation with as little as the smallest, which does not exist."""
    kind = mmd2_small_gradient_kernel, "tf32x3"
    rows = {"BLOCK_OWN": 90, "BLOCK_OTHER": 64}
    assert find_config(dispatch.CONFIGS, *kind, CHIPS[90], **rows).shared_memory > 101376
    assert find_config(dispatch.CONFIGS, *kind, Chip(90, 101376), **rows) is None


def test_the_smallest_chips_take_the_tiles_of_their_generation():
    """Compute capability 12.0 has the instructions of 8.0."""
    for kernel in GENERIC_KERNELS:
        for architecture in (86, 89, 120):
            found = find_config(dispatch.CONFIGS, kernel, "tf32x3", CHIPS[architecture])
            assert 80 in found.architectures


GENERIC_KERNELS = [
    mmd2_tile_weights_kernel,
    mmd2_tile_gradient_kernel,
    mmd2_value_sums_kernel,
    mmd2_permute_sums_kernel,
]


@pytest.mark.parametrize("kernel", GENERIC_KERNELS, ids=lambda kernel: kernel.fn.__name__)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("columns", [8, 512])
@pytest.mark.parametrize("architecture", CHIPS)
def test_generic_kernels_have_tiles_for_every_architecture(
    kernel, precision, columns, architecture
):
    input_precision = choose_input_precision(precision, columns)
    found = find_config(dispatch.CONFIGS, kernel, input_precision, CHIPS[architecture])
    assert found.kernel is kernel
    assert min(found.architectures) <= architecture


def test_torch_serves_what_triton_would_not_do_better(monkeypatch, triton_device):
    x = torch.zeros(2, 3, 4, device=triton_device)
    assert dispatch.serves(x, x, "gaussian")
    assert not dispatch.serves(x.double(), x, "gaussian")
    assert not dispatch.serves(x, x, "linear")
    assert not dispatch.serves(x[:0], x[:0], "gaussian")
    monkeypatch.setattr(dispatch, "explain_refusal", lambda device: "too old")
    assert not dispatch.serves(x, x, "gaussian")


def arguments(x: torch.Tensor, y: torch.Tensor) -> tuple:
    scales = [0.25, 0.5, 1.0, 2.0, 4.0]
    return x, y, None, None, None, "gaussian_mean", scales, False, "highest", True, False, True


def plain_torch(x: torch.Tensor, y: torch.Tensor) -> reference.Result:
    rule = reference.Rule("gaussian_mean", arguments(x, y)[6], False)
    return reference.mmd2(x, y, rule, grad_y=True)


def test_torch_serves_an_old_chip_and_logs_it_once(monkeypatch, caplog, generator, triton_device):
    monkeypatch.setattr(dispatch, "read_chip", lambda device: Chip(75, 65536))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Old Chip")
    dispatch.explain_refusal.cache_clear()
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            value, _, grad_y = ops._cuda(*arguments(x, y))
    dispatch.explain_refusal.cache_clear()
    assert [record.message for record in caplog.records] == [
        "mmd2 runs as plain torch: An Old Chip is older than compute capability 8.0"
    ]
    expected = plain_torch(x, y)
    torch.testing.assert_close(value, expected.value)
    torch.testing.assert_close(grad_y, expected.grad_y)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, ["gcc"]),  # no Python.h
        AssertionError("libcuda.so cannot found!"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_torch_serves_where_the_driver_of_triton_does_not_start_and_says_so_once(
    fault, monkeypatch, caplog
):
    def fail() -> None:
        raise fault

    monkeypatch.setattr(dispatch, "start_driver", fail)
    monkeypatch.setattr(dispatch, "read_chip", lambda device: CHIPS[90])
    dispatch.explain_refusal.cache_clear()
    with caplog.at_level(logging.INFO, "m3d_fast"):
        for _ in range(2):
            assert str(fault) in dispatch.explain_refusal(torch.device("cuda"))
    dispatch.explain_refusal.cache_clear()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "mmd2 runs as plain torch: Triton's driver does not start" in record.message
    assert "a C compiler and Python.h" in record.message


@pytest.mark.parametrize("version", [None, "3.1.0"])
def test_torch_serves_without_triton_and_logs_it_once(
    version, monkeypatch, caplog, generator, triton_device
):
    if version is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr("triton.__version__", version)
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


def test_an_output_not_requested_is_empty(generator, triton_device):
    x, y = torch.randn(2, 2, 9, 5, generator=generator).to(triton_device)
    outputs = ops._cuda(*arguments(x, y)[:9], False, False, False)
    assert [output.numel() for output in outputs] == [0, 0, 0]
