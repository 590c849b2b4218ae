"""The op behaves like an op of torch, and refuses what it does not support."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch
from torch._inductor import config as inductor
from torch.autograd import forward_ad

from m3d_fast.kernels import Gaussian, Kernel, Linear, MMDLoss, Polynomial, mmd2, mmd2_and_grad, ops

# torch scripts a function of its own when forward mode or inductor is first used
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

KERNELS = {
    "gaussian_mean": [0.25, 0.5, 1.0, 2.0, 4.0],
    "gaussian": [3.0],
    "polynomial": [3.0, 0.2, 1.0],
    "linear": [],
}
FLAGS = [(True, False, False), (True, True, True), (False, False, True), (False, True, False)]


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 7, 5, generator=generator)
    return x, torch.randn(3, 4, 5, generator=generator) + 0.3


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """A graph cached before a change of the op would hide the change.

    What g++ compiled stays cached: its name is a hash of its source.
    """
    torch._dynamo.reset()
    with inductor.patch(fx_graph_cache=False), functorch.patch(enable_autograd_cache=False):
        yield


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
# opcheck itself looks at the gradient of a tensor that is no leaf
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(kernel, flags, requires_grad, pair):
    x, y = pair
    bandwidth = torch.tensor([1.0, 2.0, 3.0]) if kernel == "gaussian" else None
    lengths = torch.tensor([7, 3, 2]) if kernel in ("gaussian_mean", "linear") else None
    dtype = torch.bfloat16 if kernel == "polynomial" else torch.float32
    x, y = (side.to(dtype, copy=True).requires_grad_(requires_grad) for side in (x, y))
    arguments = (x, y, bandwidth, lengths, None, kernel, KERNELS[kernel], False, None, *flags)
    torch.library.opcheck(ops.mmd2, arguments)


@pytest.mark.parametrize("kernel", [Gaussian(bandwidth=3.0), Polynomial(), Linear()], ids=repr)
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_gradcheck(kernel, estimator, generator):
    """Not for the mean rule: no gradient flows through its bandwidth, by definition."""
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: mmd2(a, b, kernel, estimator=estimator), (x, y), check_undefined_grad=False
    )


def weighted(x: Tensor, y: Tensor) -> Tensor:
    return (mmd2(x, y) * torch.arange(1.0, 4.0)).sum()


@pytest.mark.usefixtures("fresh_graphs")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_forward_and_backward(backend, pair):
    eager = [side.clone().requires_grad_() for side in pair]
    compiled = [side.clone().requires_grad_() for side in pair]
    expected = weighted(*eager)
    expected.backward()
    loss = torch.compile(weighted, fullgraph=True, backend=backend)(*compiled)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for ours, side in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours.grad, side.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("fresh_graphs")
def test_compile_with_kernels_and_modules_made_inside(pair):
    def step(x: Tensor, y: Tensor, sigma: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        loss = MMDLoss(Gaussian(bandwidth=2.0, scales=(1, 2)), estimator="unbiased")
        value, gradient = mmd2_and_grad(
            x, y, Gaussian(sigma=sigma), x_lengths=lengths, precision="highest"
        )
        assert value is not None
        return loss(x, y) + value.sum(), gradient

    arguments = (*pair, torch.tensor(1.5), torch.tensor([7, 3, 2]))
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(*arguments), step(*arguments))
    with pytest.raises(ValueError, match=r"x_lengths: expected 1 to 7 .*, got 3 to 9"):
        compiled(*pair, torch.tensor(1.5), torch.tensor([7, 9, 3]))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_number_of_rows(strict, pair):
    x, y = pair
    rows = {1: torch.export.Dim("rows", min=2)}, {1: torch.export.Dim("others", min=2)}
    exported = torch.export.export(MMDLoss(), (x, y), dynamic_shapes=rows, strict=strict)
    fewer = x[:, :5], y[:, :3]
    torch.testing.assert_close(exported.module()(*fewer), MMDLoss()(*fewer))


@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_autocast_computes_in_float32(kernel, generator, truth, device):
    x = torch.randn(2, 64, 128, generator=generator)
    y = torch.randn(2, 40, 128, generator=generator).to(torch.bfloat16)
    exact = truth.exact(x, y, kernel)
    x, y = x.to(device), y.to(device).requires_grad_()
    with torch.autocast(device.type, torch.bfloat16):
        value = mmd2(x, y, kernel)
        _, gradient = mmd2_and_grad(x, y.detach().float(), kernel)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert y.grad.dtype == torch.bfloat16
    truth.assert_value(value, exact.value)
    truth.assert_gradient(gradient, exact.grad_y)
    truth.assert_gradient(y.grad, exact.grad_y, within=4e-3)


@pytest.mark.parametrize("kernel", [Gaussian(), Linear()], ids=repr)
def test_vmap_is_one_more_batch_dimension(kernel, pair):
    x, y = pair
    over_classes = torch.func.vmap(lambda a, b: mmd2(a, b, kernel))
    torch.testing.assert_close(over_classes(x, y), mmd2(x, y, kernel))
    against_one = torch.func.vmap(lambda a, b: mmd2(a, b, kernel), in_dims=(2, None))
    expected = mmd2(x, y[:1].expand_as(y), kernel)
    torch.testing.assert_close(against_one(x.permute(1, 2, 0), y[0]), expected)
    lengths = torch.tensor([7, 2, 4])
    ragged = torch.func.vmap(lambda a, b, n: mmd2_and_grad(a, b, kernel, x_lengths=n))
    torch.testing.assert_close(
        ragged(x, y, lengths), mmd2_and_grad(x, y, kernel, x_lengths=lengths)
    )


def test_vmap_over_bandwidths(pair):
    x, y = pair
    bandwidths = torch.tensor([1.0, 4.0])
    values = torch.func.vmap(lambda b: mmd2(x, y, Gaussian(bandwidth=b)))(bandwidths)
    expected = torch.stack([mmd2(x, y, Gaussian(bandwidth=b)) for b in bandwidths.tolist()])
    torch.testing.assert_close(values, expected)


def test_torch_func_gradients(pair):
    x, y = pair
    _, (grad_x, grad_y) = mmd2_and_grad(x, y, wrt="both")
    of_sum = torch.func.grad(lambda a, b: mmd2(a, b).sum(), argnums=(0, 1))
    torch.testing.assert_close(of_sum(x, y), (grad_x, grad_y))
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(mmd2))(x, y), grad_x)
    inside = torch.func.grad(lambda b: torch.func.vmap(mmd2)(x, b).sum())
    torch.testing.assert_close(inside(y), grad_y)


def gradient_penalty(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
    # x.sum() keeps the graph connected if the gradient is wrongly taken for a constant
    (gradient.square().sum() + x.sum()).backward()


def func_gradient_penalty(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> None:
    torch.func.grad(lambda a: torch.func.grad(loss)(a, y).square().sum() + a.sum())(x)


@pytest.mark.parametrize("twice", [gradient_penalty, func_gradient_penalty])
@pytest.mark.parametrize("outer", [torch.sum, lambda v: v.square().sum()], ids=["sum", "square"])
def test_second_derivative_raises(twice, outer, pair):
    with pytest.raises(NotImplementedError, match="mmd2 has no second derivative"):
        twice(lambda x, y: outer(mmd2(x, y)), *pair)


def test_create_graph_alone_is_allowed(pair):
    x, y = pair
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(mmd2(x, y).sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, mmd2_and_grad(x, y, wrt="x")[1])


def dual(call: Callable[..., object], x: Tensor, y: Tensor) -> None:
    with forward_ad.dual_level():
        call(forward_ad.make_dual(x, torch.ones_like(x)), y)


def jvp(call: Callable[..., object], x: Tensor, y: Tensor) -> None:
    torch.func.jvp(lambda a: call(a, y), (x,), (torch.ones_like(x),))


def jvp_of_vmap(call: Callable[..., object], x: Tensor, y: Tensor) -> None:
    torch.func.jvp(lambda a: torch.func.vmap(call)(a, y), (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("mode", [dual, jvp, jvp_of_vmap])
@pytest.mark.parametrize("call", [mmd2, mmd2_and_grad])
def test_forward_mode_raises(mode, call, pair):
    with pytest.raises(NotImplementedError, match="mmd2 has no forward-mode derivative"):
        mode(call, *pair)


def test_forward_mode_raises_for_tensors_that_require_grad(pair):
    with pytest.raises(NotImplementedError, match="mmd2 has no forward-mode derivative"):
        dual(mmd2, pair[0].requires_grad_(), pair[1])


def test_results_of_mmd2_and_grad_are_not_in_a_graph(pair):
    x, y = (side.requires_grad_() for side in pair)
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, wrt="both")
    assert not any(result.requires_grad for result in (value, grad_x, grad_y))


def test_no_grad_and_inference_mode(pair):
    x, y = (side.requires_grad_() for side in pair)
    expected = mmd2(x, y)
    assert expected.requires_grad
    with torch.no_grad():
        assert not mmd2(x, y).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(mmd2(x, y), expected.detach())


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_module_reduces_over_the_batch(reduction, pair):
    value = mmd2(*pair, Gaussian(gamma=0.1), estimator="unbiased")
    loss = MMDLoss(Gaussian(gamma=0.1), estimator="unbiased", reduction=reduction)
    expected = value if reduction == "none" else getattr(value, reduction)()
    torch.testing.assert_close(loss(*pair), expected)


def test_module_takes_lengths_and_has_a_repr(pair):
    loss = MMDLoss(reduction="none")
    lengths = torch.tensor([7, 3, 2])
    torch.testing.assert_close(loss(*pair, lengths), mmd2(*pair, x_lengths=lengths))
    assert repr(MMDLoss(Linear())) == "MMDLoss(Linear(), estimator='biased', reduction='mean')"


@pytest.mark.parametrize(
    "kernel", [Gaussian(), Gaussian(sigma=2.0), Polynomial(), Linear()], ids=repr
)
def test_meta_tensors_give_shapes(kernel: Kernel):
    x, y = torch.empty(2, 3, 5, 4, device="meta"), torch.empty(2, 3, 6, 4, device="meta")
    value, (grad_x, grad_y) = mmd2_and_grad(x, y, kernel, wrt="both")
    assert (value.shape, grad_x.shape, grad_y.shape) == ((2, 3), x.shape, y.shape)
