"""The op against its peers on the CPU: equality first, then interleaved time, and memory.

    OMP_NUM_THREADS=1 python -m pytest benchmarks/bench_mmd.py --benchmark-json=FILE

GPU figures come from ``python -m benchmarks.gpu``, which times with CUDA graphs.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import peers
from benchmarks.memory import peak_bytes
from m3d_fast.adapters import MMDDrift
from m3d_fast.kernels import (
    CMMD,
    KID,
    Energy,
    Gaussian,
    mmd2,
    mmd2_and_grad,
    permutation_test,
)

OURS = "m3d_fast"
MEDIUM = f'{OURS}, precision="medium"'
MEDIUM_WITHIN = 2**-8  # bfloat16 rounds points and weights by up to 2^-9 each
Functions = dict[str, Callable[[], object]]


@pytest.fixture
def compare(time_in_turn, benchmark) -> Callable[..., dict[str, float]]:
    """Time in turn; record the case and every function's peak memory in MB beyond inputs."""

    def run(case: str, functions: Functions, rounds: int = 7) -> dict[str, float]:
        benchmark.extra_info["case"] = case
        benchmark.extra_info["peak_mb"] = {
            name: peak_bytes(function) / 2**20 for name, function in functions.items()
        }
        return time_in_turn(functions, rounds=rounds)

    return run


def draw_features(classes: int, n: int, m: int, d: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(classes, n, d, generator=generator).relu()
    return real, (torch.randn(classes, m, d, generator=generator) + 0.1).relu()


def assert_equal(peer: peers.Peer, real: Tensor, synthetic: Tensor, within: float) -> None:
    """Compare loss, and gradient relative to its norm, with the closed form in float64."""
    exact_losses, exact = peers.closed_form(real.double(), synthetic.double())
    losses, gradient = peer(real, synthetic)
    assert (losses - exact_losses).abs().max() < 5 * within
    assert (gradient - exact).norm() < within * exact.norm()


def medium(real: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
    """The op in bfloat16, where the CPU and the shape gain from it."""
    losses, gradient = mmd2_and_grad(real, synthetic, precision="medium")
    assert losses is not None
    return losses, gradient


def list_peers() -> dict[str, peers.Peer]:
    """The op and every peer with a loss and a gradient."""
    loop = peers.differentiate(peers.loop_losses)
    batched = peers.differentiate(peers.batched_losses)
    return {
        OURS: lambda x, y: mmd2_and_grad(x, y),  # type: ignore[dict-item, return-value]
        "loop over classes, one backward": loop,
        "loop over classes, a backward each": peers.loop_of_backwards,
        "loop over classes, indexing one tensor": peers.differentiate(peers.indexed_losses),
        "batched": batched,
        "batched, torch.compile": torch.compile(batched),
        "closed form in plain torch": peers.closed_form,
    }


SHAPES = [(10, 256, 40, 2048), (100, 64, 90, 512)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradient(shape, compare) -> None:
    real, synthetic = draw_features(*shape)
    functions: Functions = {}
    for name, peer in list_peers().items():
        assert_equal(peer, real, synthetic, within=1e-6 if name == OURS else 1e-4)
        functions[name] = lambda peer=peer: peer(real, synthetic)
    functions[f"{OURS}, gradient only"] = lambda: mmd2_and_grad(real, synthetic, value=False)
    assert_equal(medium, real, synthetic, within=MEDIUM_WITHIN)
    functions[MEDIUM] = lambda: medium(real, synthetic)
    functions[f"{MEDIUM}, gradient only"] = lambda: mmd2_and_grad(
        real, synthetic, value=False, precision="medium"
    )
    functions["matrix products alone"] = lambda: peers.multiply_only(real, synthetic)
    torch.testing.assert_close(
        mmd2_and_grad(real, synthetic, value=False)[1], mmd2_and_grad(real, synthetic)[1]
    )
    medians = compare(f"value and gradient, C N M D = {shape}", functions)
    assert medians[OURS] < medians["loop over classes, a backward each"]


def test_value_and_gradient_of_other_libraries(compare) -> None:
    """A tenth of the ImageNet-100 shape: KeOps takes seconds per class on a CPU."""
    real, synthetic = draw_features(10, 64, 90, 512)
    functions: Functions = {OURS: lambda: mmd2_and_grad(real, synthetic)}
    for name, peer in peers.find_libraries():
        assert_equal(peer, real, synthetic, within=1e-3)
        functions[name] = lambda peer=peer: peer(real, synthetic)
    if peers.import_optional("sklearn"):
        value = peers.sklearn_value(real[0], synthetic[0])
        assert abs(mmd2(real[0], synthetic[0]).item() - value) < 5e-6
        functions["scikit-learn, value only"] = lambda: [
            peers.sklearn_value(x, y) for x, y in zip(real, synthetic, strict=True)
        ]
    compare("value and gradient, C N M D = (10, 64, 90, 512)", functions, rounds=3)


def test_cmmd(compare) -> None:
    x, y = (
        torch.nn.functional.normalize(side[0], dim=-1) for side in draw_features(1, 5000, 5000, 768)
    )

    def ours() -> Tensor:
        metric = CMMD()
        metric.update(x, real=True)
        metric.update(y, real=False)
        return metric.compute()

    exact = 1000 * mmd2(x.double(), y.double(), CMMD.kernel)
    assert abs(ours() - exact) < 1e-6
    assert abs(peers.published_cmmd(x, y) - exact) < 1e-3
    # of so wide a kernel MMD^2 is nearly the squared distance of the means, off by 2^-9 at most
    rounded = 1000 * mmd2(x, y, CMMD.kernel, precision="medium")
    assert abs(rounded - exact) < MEDIUM_WITHIN * exact
    functions: Functions = {
        "mmd2": lambda: mmd2(x, y, CMMD.kernel),
        'mmd2, precision="medium"': lambda: mmd2(x, y, CMMD.kernel, precision="medium"),
        "CMMD, which copies the features": ours,
        "published formulation": lambda: peers.published_cmmd(x, y),
    }
    compare("CMMD, 5000 + 5000 rows of 768", functions, rounds=5)


def test_kid(compare) -> None:
    """Five subsets of the published size; torchmetrics gets features from an identity network."""
    x, y = (side[0] for side in draw_features(1, 2000, 2000, 2048))

    def ours() -> Tensor:
        metric = KID(subsets=5, subset_size=1000)
        metric.update(x, real=True)
        metric.update(y, real=False)
        return metric.compute().mean

    whole = KID(subsets=1, subset_size=2000)
    whole.update(x, real=True)
    whole.update(y, real=False)
    exact = peers.published_kid(x.double(), y.double()).item()
    assert whole.compute().mean.item() == pytest.approx(exact, rel=1e-4)
    functions: Functions = {OURS: ours}
    theirs = peers.make_torchmetrics_kid(x, y, subsets=5, subset_size=1000)
    if theirs is not None:
        torch.manual_seed(1)
        mean = theirs()
        torch.manual_seed(1)
        assert ours().item() == pytest.approx(mean.item(), rel=1e-3), "the same subsets are drawn"
        functions["torchmetrics"] = theirs
    numpy = peers.make_clean_fid_kid(x, y, subsets=5, subset_size=1000)
    if numpy is not None:
        # other subsets: the standard error of five is below a tenth of the distance here
        assert numpy() == pytest.approx(exact, rel=0.3)
        functions["clean-fid"] = numpy
    compare("KID, 5 subsets of 1000 rows of 2048", functions, rounds=3)


def test_two_sample(compare) -> None:
    """Value and both gradients; the dense form takes 5 GB and half a minute."""
    x, y = (side[0] for side in draw_features(1, 5000, 5000, 10))

    def dense() -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), y.clone().requires_grad_()
        return torch.autograd.grad(peers.stacked_loss(*leaves), leaves)

    ours = mmd2_and_grad(x, y, wrt="both")[1]
    for mine, theirs in zip(ours, dense(), strict=True):
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()
    functions: Functions = {OURS: lambda: mmd2_and_grad(x, y, wrt="both"), "dense, stacked": dense}
    compare("two samples, 5000 + 5000 rows of 10, both gradients", functions, rounds=2)


def test_energy_distance(compare) -> None:
    """Value and gradient; GeomLoss' matrices, and KeOps' where it is installed."""
    x, y = (side[0] for side in draw_features(1, 3000, 3000, 64))
    exact_value, exact = peers.energy_by_cdist(x.double(), y.double())
    functions: Functions = {OURS: lambda: mmd2_and_grad(x, y, Energy())}
    competitors = {"torch.cdist": peers.energy_by_cdist, "geomloss": peers.make_geomloss_energy()}
    if peers.import_optional("pykeops"):
        competitors["KeOps by geomloss"] = peers.make_geomloss_energy("online")
    value, gradient = mmd2_and_grad(x, y, Energy())
    assert value is not None
    assert abs(value - exact_value) < 1e-6
    assert (gradient - exact).norm() < 1e-5 * exact.norm()
    for name, peer in competitors.items():
        if peer is not None:
            assert (peer(x, y)[1] - exact).norm() < 1e-2 * exact.norm()
            functions[name] = lambda peer=peer: peer(x, y)
    compare("energy distance, 3000 + 3000 rows of 64", functions, rounds=3)


def test_errors_far_from_the_origin(benchmark) -> None:
    """Relative error of the gradient against float64; the published forms lose all digits."""
    functions = list_peers() | dict(peers.find_libraries())
    benchmark.pedantic(lambda: mmd2_and_grad(*draw_features(2, 128, 40, 512)), rounds=1)
    for ratio in (1, 100, 1000):
        real, synthetic = draw_features(2, 128, 40, 512)
        shift = ratio * real.std()
        real, synthetic = real + shift, synthetic + shift
        _, exact = peers.closed_form(real.double(), synthetic.double())
        for name, peer in functions.items():
            error = ((peer(real, synthetic)[1] - exact).norm() / exact.norm()).item()
            benchmark.extra_info[f"{name}, mean/std {ratio}"] = error
        assert benchmark.extra_info[f"{OURS}, mean/std {ratio}"] < 2e-6


def test_permutations(compare) -> None:
    x, y = (side[0] for side in draw_features(1, 1000, 1000, 10))
    seed = torch.Generator()
    result = permutation_test(x, y, permutations=100, generator=seed.manual_seed(1))
    seed.manual_seed(1)
    orders = [torch.randperm(2000, generator=seed) for _ in range(100)]
    torch.testing.assert_close(result.null, peers.gather_null(x, y, orders), rtol=0, atol=2e-5)
    functions: Functions = {
        OURS: lambda: permutation_test(x, y, Gaussian(), permutations=100),
        "gather per permutation": lambda: peers.gather_null(x, y, orders),
    }
    theirs = peers.make_alibi_drift(x, y, permutations=100)
    if theirs is not None:
        functions["MMDDrift"] = lambda: MMDDrift(x, n_permutations=100).predict(y)
        functions["alibi-detect"] = theirs
    compare("100 permutations of 1000 + 1000 rows of 10", functions, rounds=3)
