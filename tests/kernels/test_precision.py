"""Products in the op are float32 whatever the process allows; settings are read and kept."""

from collections.abc import Iterator

import pytest
import torch

from m3d_fast.kernels import mmd2
from m3d_fast.kernels.cpu import tiled
from m3d_fast.kernels.precision import default_precision, full_float32

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


def test_the_op_uses_it(monkeypatch: pytest.MonkeyPatch):
    seen = []
    compute = tiled.mmd2

    def watched(*arguments, **options):
        seen.append(BACKENDS["cpu"].fp32_precision)
        return compute(*arguments, **options)

    monkeypatch.setattr(tiled, "mmd2", watched)
    BACKENDS["cpu"].fp32_precision = "tf32"
    mmd2(torch.ones(3, 2), torch.zeros(3, 2), precision="medium")
    assert seen == ["ieee"]


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_torch_before_2_9_has_one_setting(precision, monkeypatch):
    monkeypatch.setattr("m3d_fast.kernels.precision._has_settings_by_backend", lambda: False)
    device = torch.device("cpu")
    torch.set_float32_matmul_precision(precision)
    assert default_precision(device) == precision
    with full_float32(device):
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_by_name(device, precision):
    torch.set_float32_matmul_precision(precision)
    assert default_precision(torch.device(device)) == precision


@pytest.mark.parametrize(
    ("setting", "precision"), [("ieee", "highest"), ("tf32", "high"), ("none", "highest")]
)
@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_of_the_backend(device, setting, precision):
    """Of which torch.get_float32_matmul_precision() refuses to speak once it is tf32."""
    BACKENDS[device].fp32_precision = setting
    assert default_precision(torch.device(device)) == precision


@pytest.mark.parametrize("device", BACKENDS)
def test_the_default_follows_the_setting_for_everything(device):
    torch.backends.fp32_precision = "tf32"
    assert default_precision(torch.device(device)) == "high"
    BACKENDS[device].fp32_precision = "ieee"
    assert default_precision(torch.device(device)) == "highest"


def test_bfloat16_products_on_a_cpu_are_medium():
    BACKENDS["cpu"].fp32_precision = "bf16"
    assert default_precision(torch.device("cpu")) == "medium"
