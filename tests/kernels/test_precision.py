"""Products in the op have the precision it was asked for; torch's settings are read and kept."""

import logging
import threading
from collections.abc import Iterator

import pytest
import torch

from m3d_fast.kernels import Linear, mmd2, mmd2_and_grad, precision
from m3d_fast.kernels.cpu import tiled
from m3d_fast.kernels.precision import bfloat16_products, default_precision, full_float32

BACKENDS = {"cpu": torch.backends.mkldnn.matmul, "cuda": torch.backends.cuda.matmul}


def forget_settings() -> None:
    torch.set_float32_matmul_precision("highest")
    for place in (torch.backends, *BACKENDS.values()):
        place.fp32_precision = "none"


@pytest.fixture(autouse=True)
def torch_defaults() -> Iterator[None]:
    forget_settings()
    yield
    forget_settings()


@pytest.mark.parametrize("setting", ["tf32", "ieee", "none"])
@pytest.mark.parametrize("device", BACKENDS)
def test_products_are_float32_inside_and_as_before_outside(device, setting):
    backend = BACKENDS[device]
    backend.fp32_precision = setting
    with full_float32(torch.device(device)):
        assert backend.fp32_precision in ("ieee", "none")
    assert backend.fp32_precision == setting


def test_a_setting_for_everything_is_still_followed_afterwards():
    backend = BACKENDS["cpu"]
    torch.backends.fp32_precision = "tf32"
    with full_float32(torch.device("cpu")):
        assert backend.fp32_precision == "ieee"
    assert backend.fp32_precision == "tf32"
    torch.backends.fp32_precision = "ieee"
    assert backend.fp32_precision == "ieee"


def test_setting_is_put_back_after_an_error():
    backend = BACKENDS["cpu"]
    backend.fp32_precision = "tf32"
    with pytest.raises(RuntimeError, match="inside"), full_float32(torch.device("cpu")):
        raise RuntimeError("inside")
    assert backend.fp32_precision == "tf32"


@pytest.fixture
def settings_inside(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Torch's setting in each call of the CPU path, on a CPU with bfloat16 products."""
    seen: list[str] = []
    compute = tiled.mmd2

    def watched(*arguments, **options):
        seen.append(BACKENDS["cpu"].fp32_precision)
        return compute(*arguments, **options)

    monkeypatch.setattr(tiled, "mmd2", watched)
    monkeypatch.setattr(tiled, "has_bfloat16_products", lambda: True)
    return seen


@pytest.mark.parametrize("setting", ["tf32", "ieee", "none"])
def test_medium_multiplies_in_bfloat16(setting, settings_inside):
    BACKENDS["cpu"].fp32_precision = setting
    mmd2(torch.ones(64, 256), torch.zeros(64, 256), precision="medium")
    assert settings_inside == ["bf16"]
    assert BACKENDS["cpu"].fp32_precision == setting


@pytest.mark.parametrize(
    ("shape", "dtype", "kernel", "asked"),
    [
        ((64, 256), torch.float32, None, "high"),
        ((64, 256), torch.float32, None, None),
        ((63, 256), torch.float32, None, "medium"),
        ((64, 255), torch.float32, None, "medium"),
        ((64, 256), torch.float64, None, "medium"),
        ((64, 256), torch.float32, Linear(), "medium"),
    ],
    ids=str,
)
def test_everything_else_multiplies_in_float32(shape, dtype, kernel, asked, settings_inside):
    """Also where torch's own setting is lower: it is not followed down on a CPU."""
    BACKENDS["cpu"].fp32_precision = "bf16"
    kernels = [] if kernel is None else [kernel]
    mmd2(torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), *kernels, precision=asked)
    assert settings_inside == ["ieee"]


def test_threads_do_not_restore_each_others_settings():
    second_is_inside = threading.Event()

    def multiply_in_float32() -> None:
        with full_float32(torch.device("cpu")):
            second_is_inside.set()

    second = threading.Thread(target=multiply_in_float32)
    with bfloat16_products():
        second.start()
        # the second must wait for the first to leave
        assert not second_is_inside.wait(0.2)
    second.join()
    assert BACKENDS["cpu"].fp32_precision == "none"


def test_without_the_instructions_medium_is_float32_and_says_so_once(
    monkeypatch, caplog, generator
):
    monkeypatch.setattr(precision, "_find_missing", lambda: "this CPU is old")
    precision.has_bfloat16_products.cache_clear()
    x, y = torch.randn(2, 64, 256, generator=generator)
    try:
        with caplog.at_level(logging.INFO, "m3d_fast"):
            ours = [mmd2_and_grad(x, y, precision="medium") for _ in range(2)]
    finally:
        precision.has_bfloat16_products.cache_clear()
    assert caplog.messages == ['mmd2, precision="medium": computed in float32, as this CPU is old']
    for mine, theirs in zip(ours[1], mmd2_and_grad(x, y, precision="highest"), strict=True):
        assert torch.equal(mine, theirs)


def test_bfloat16_products_round_the_factors_alone(generator):
    """A bfloat16 result would be off by up to 2^-9 of each number even for factors that fit."""
    if precision._find_missing():
        pytest.skip(precision._find_missing())
    a, b = torch.randn(2, 2, 64, 256, generator=generator)
    with bfloat16_products():
        rounded = torch.bmm(a, b.mT)
        exact = torch.bmm(a.bfloat16().float(), b.bfloat16().float().mT)
    expected = torch.bmm(a.bfloat16().double(), b.bfloat16().double().mT)
    for product in (rounded, exact):
        assert (product - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
def test_torch_before_2_9_has_one_setting(name, monkeypatch):
    monkeypatch.setattr("m3d_fast.kernels.precision._has_settings_by_backend", lambda: False)
    assert "2.9" in precision._find_missing()
    device = torch.device("cpu")
    torch.set_float32_matmul_precision(name)
    assert default_precision(device) == name
    with full_float32(device):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == name


@pytest.mark.parametrize("name", ["highest", "high", "medium"])
@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_by_name(device, name):
    torch.set_float32_matmul_precision(name)
    assert default_precision(torch.device(device)) == name


@pytest.mark.parametrize(
    ("setting", "name"), [("ieee", "highest"), ("tf32", "high"), ("none", "highest")]
)
@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_of_the_backend(device, setting, name):
    """Of which torch.get_float32_matmul_precision() refuses to speak once it is tf32."""
    BACKENDS[device].fp32_precision = setting
    assert default_precision(torch.device(device)) == name


@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_for_everything(device):
    torch.backends.fp32_precision = "tf32"
    assert default_precision(torch.device(device)) == "high"
    BACKENDS[device].fp32_precision = "ieee"
    assert default_precision(torch.device(device)) == "highest"


def test_bfloat16_products_on_a_cpu_are_medium():
    BACKENDS["cpu"].fp32_precision = "bf16"
    assert default_precision(torch.device("cpu")) == "medium"
