"""The tiles of the CPU path against the reference and float64, and their memory."""

import itertools

import pytest
import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from m3d_fast.kernels import Gaussian, Kernel, Linear, Polynomial, reference
from m3d_fast.kernels.cpu import blocks, gaussian_mixture, tiled, tiles
from m3d_fast.kernels.precision import bfloat16_products

KERNELS = [
    Gaussian(),
    Gaussian(sigma=3.0, scales=(1.0,)),
    Gaussian(scales=(3.0, 0.5, 1.0, 2.0, 0.7)),
    Gaussian(bandwidth=torch.tensor([20.0, 30.0, 40.0])),
    Polynomial(),
    Polynomial(1, gamma=0.5, coef0=0.0),
    Linear(),
]
LENGTHS = torch.tensor([50, 41, 2]), torch.tensor([2, 33, 17])


def three_classes(generator: torch.Generator, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 50, 21, generator=generator, dtype=dtype).relu()
    return x, torch.randn(3, 33, 21, generator=generator, dtype=dtype) + 0.3


def compute(module, x: Tensor, y: Tensor, kernel: Kernel, estimator: str = "biased", **options):
    name, parameters, bandwidth = kernel.encode(x.shape[-1])
    rule = reference.Rule(name, parameters, estimator == "unbiased")
    return module.mmd2(x, y, rule, bandwidth=bandwidth, **options)


@pytest.fixture(params=["kept", "centred again", "class by class"])
def small_tiles(request, monkeypatch):
    """Blocks of 16 rows, halved, kept and centred in every way."""
    for name, number in {"TILE_ROWS": 16, "HALF_ROWS": 8, "STEP": 4, "WIDE": 21}.items():
        monkeypatch.setattr(blocks, name, number)
    if request.param == "centred again":
        monkeypatch.setattr(blocks, "KEPT_NUMBERS", 21 * 16)
    if request.param == "class by class":
        monkeypatch.setattr(tiled, "CHUNK_NUMBERS", 1)


def assert_same(ours, expected, within: float) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert (mine is None) == (theirs is None)
        if theirs is not None:
            bound = within * max(1.0, theirs.abs().max().item())
            torch.testing.assert_close(mine, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("lengths", [(None, None), LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_tiles_give_what_the_reference_does(kernel, estimator, lengths, generator, small_tiles):
    x, y = three_classes(generator, torch.float64)
    options = {"x_lengths": lengths[0], "y_lengths": lengths[1], "grad_x": True, "grad_y": True}
    ours = compute(tiled, x, y, kernel, estimator, **options)
    assert_same(ours, compute(reference, x, y, kernel, estimator, **options), 1e-13)


@pytest.mark.parametrize("wanted", ["value", "grad_x", "grad_y"])
@pytest.mark.parametrize("kernel", [Gaussian(), Polynomial()], ids=repr)
def test_each_result_alone(kernel, wanted, generator, small_tiles):
    x, y = three_classes(generator, torch.float64)
    options = dict.fromkeys(("value", "grad_x", "grad_y"), False) | {wanted: True}
    for lengths in ({}, dict(zip(("x_lengths", "y_lengths"), LENGTHS, strict=True))):
        ours = compute(tiled, x, y, kernel, **options, **lengths)
        assert_same(ours, compute(reference, x, y, kernel, **options, **lengths), 1e-13)


@pytest.mark.parametrize("value", [True, False], ids=["value", "gradient only"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if isinstance(k, Gaussian)], ids=repr)
@pytest.mark.parametrize("together", [1, 2, 3])
def test_few_rows_in_a_single_tile(kernel, estimator, value, together, generator, monkeypatch):
    """A step of condensation, for classes one by one, two and one, and all at once."""
    x, y = three_classes(generator, torch.float64)
    monkeypatch.setattr(tiled, "CHUNK_NUMBERS", together * (50 + 33) * 21)
    fits, answers = tiled._fits_single_tile, []
    monkeypatch.setattr(
        tiled, "_fits_single_tile", lambda *sides: answers.append(fits(*sides)) or answers[-1]
    )
    options = {"value": value, "grad_y": True}
    ours = compute(tiled, x, y, kernel, estimator, **options)
    assert answers == [True]
    assert_same(ours, compute(reference, x, y, kernel, estimator, **options), 1e-13)


def test_a_row_is_at_distance_zero_from_itself(generator):
    """However narrow the kernel, which would see the rounding of the distances."""
    value = compute(tiled, *three_classes(generator), Gaussian(bandwidth=1e-5), grad_y=True).value
    expected = torch.full((3,), 5 * (1 / 50 + 1 / 33))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [(50, 1), (1, 33), (600, 100), (300, 129), (3000, 100)], ids=str)
@pytest.mark.parametrize("columns", [15, 16])
def test_gradient_at_the_limits_of_a_single_tile(rows, columns, generator):
    x, y = (torch.randn(n, columns, generator=generator) + 1 for n in rows)
    ours = compute(tiled, x, y, Gaussian(), grad_y=True)
    exact = compute(reference, x.double(), y.double(), Gaussian(), grad_y=True)
    assert abs(ours.value.item() - exact.value.item()) < 5e-6
    # samples of one distribution: the pulls of x and of y, right to 1e-7, cancel but for about a
    # tenth; 9e-7 is seen
    assert (ours.grad_y.double() - exact.grad_y).norm() < 5e-6 * exact.grad_y.norm()


@pytest.mark.parametrize("mean", [0.0, 1000.0, 1e5])
def test_tiles_are_accurate_at_any_mean(mean, generator, truth, small_tiles):
    x, y = (side + mean for side in three_classes(generator))
    exact = truth.exact(x, y)
    ours = compute(tiled, x, y, Gaussian(), grad_x=True, grad_y=True)
    truth.assert_value(ours.value, exact.value)
    truth.assert_gradient(ours.grad_x, exact.grad_x)
    truth.assert_gradient(ours.grad_y, exact.grad_y)
    alone = compute(tiled, x, y, Gaussian(), grad_y=True)
    truth.assert_value(alone.value, exact.value)
    truth.assert_gradient(alone.grad_y, exact.grad_y)


@pytest.mark.parametrize("columns", [10, 40])
def test_samples_of_several_real_blocks(columns, generator):
    x = torch.randn(1300, columns, generator=generator)
    y = torch.randn(700, columns, generator=generator) + 0.1
    assert len(blocks.split_rows(1300, columns)) > 2
    ours = compute(tiled, x, y, Gaussian(), grad_x=True, grad_y=True)
    exact = compute(reference, x.double(), y.double(), Gaussian(), grad_x=True, grad_y=True)
    assert abs(ours.value.item() - exact.value.item()) < 5e-6
    for mine, theirs in ((ours.grad_x, exact.grad_x), (ours.grad_y, exact.grad_y)):
        # nearly of one distribution: the pulls of x and of y nearly cancel; 6e-7 is seen
        assert (mine.double() - theirs).norm() < 4e-6 * theirs.norm()


def round_centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both samples less the mean of the stacked rows, to bfloat16, as float64."""
    mean = torch.cat([x, y], -2).double().mean(-2, keepdim=True)
    return tuple((side.double() - mean).bfloat16().double() for side in (x, y))


@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(2, 64, 90, 256), (1, 600, 300, 256)], ids=str)
def test_medium_is_exact_for_the_rounded_rows(shape, mean, generator, truth):
    """The value, that is; weights of the gradient are rounded too."""
    classes, n, m, columns = shape
    x = torch.randn(classes, n, columns, generator=generator).relu() + mean
    y = torch.randn(classes, m, columns, generator=generator).relu() + mean + 0.1
    exact = compute(reference, *round_centred(x, y), Gaussian(), grad_x=True, grad_y=True)
    with bfloat16_products():
        both = compute(tiled, x, y, Gaussian(), grad_x=True, grad_y=True, bfloat16=True)
        alone = compute(tiled, x, y, Gaussian(), grad_y=True, bfloat16=True)
    unrounded = compute(reference, x.double(), y.double(), Gaussian(), grad_x=True, grad_y=True)
    assert (unrounded.value - exact.value).abs().max() < 1e-4
    for ours in (both, alone):
        truth.assert_value(ours.value, exact.value)
        # a weight is off by up to 2^-9 of itself, a row by as much of each number
        truth.assert_gradient(ours.grad_y, exact.grad_y, within=2**-9)
        truth.assert_gradient(ours.grad_y, unrounded.grad_y, within=2**-8)
    truth.assert_gradient(both.grad_x, exact.grad_x, within=2**-9)


@pytest.mark.parametrize("m", [64, 200], ids=["one tile", "several"])
def test_medium_keeps_near_neighbours_apart(m, generator):
    """A kernel as narrow as their distance: norms of anything but the rounded rows are seen."""
    x = torch.randn(1, 600, 256, generator=generator)
    y = x[:, :m] + 0.01 * torch.randn(1, m, 256, generator=generator)
    kernel = Gaussian(bandwidth=256 * 0.01**2, scales=(1.0,))
    rounded = compute(reference, *round_centred(x, y), kernel)
    exact = compute(reference, x.double(), y.double(), kernel)
    with bfloat16_products():
        ours = compute(tiled, x, y, kernel, grad_y=True, bfloat16=True)
    # float32 is right to 2e-3 of such a distance, bfloat16 to some percent of it
    neighbours = 2 / 600
    assert abs(ours.value - rounded.value) < 2e-3 * neighbours
    assert abs(ours.value - exact.value) < 5e-2 * neighbours


def test_medium_ignores_rows_beyond_the_lengths(generator):
    x, y = torch.randn(2, 2, 70, 256, generator=generator)
    lengths = torch.tensor([70, 65])
    x[1, 65:], y[1, 65:] = torch.nan, torch.inf
    options = {"x_lengths": lengths, "y_lengths": lengths, "grad_y": True, "bfloat16": True}
    with bfloat16_products():
        ours = compute(tiled, x, y, Gaussian(), **options)
        whole = compute(tiled, x[1:, :65], y[1:, :65], Gaussian(), grad_y=True, bfloat16=True)
    assert (ours.grad_y[1, 65:] == 0).all()
    torch.testing.assert_close(ours.value[1:], whole.value, rtol=0, atol=2e-6)
    # a mean in another order of sums: some numbers and weights are rounded the other way
    torch.testing.assert_close(ours.grad_y[1:, :65], whole.grad_y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [60, 500, 1300])
def test_blocks_for_bfloat16_are_whole_tiles_of_the_unit(rows):
    bounds = blocks.split_rows(rows, 512, bfloat16=True)
    assert [bounds[0].start, bounds[-1].stop] == [0, rows]
    assert all(a.stop == b.start for a, b in itertools.pairwise(bounds))
    assert all((block.stop - block.start) % 32 == 0 for block in bounds[:-1])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_halves_of_a_symmetric_tile_are_its_upper_triangle(bfloat16, generator):
    points = torch.randn(2, 900, 512, generator=generator)
    sample = blocks.split_sample(points, None, bfloat16, halved=True)
    assert [block.stop for block in sample.bounds] == [480 if bfloat16 else 464, 900]
    rows = sample.bounds[0]
    tile = tiles.Tile(sample, rows, sample, rows, sample.block(0), sample.block(0))
    counted = torch.zeros(900, 900)
    halves = list(tiles.halve(tile))
    for half in halves:
        assert half.a_points.equal(points[:, half.a_rows])
        assert half.b_points.equal(points[:, half.b_rows])
        counted[half.a_rows, half.b_rows] += 1
        if not half.on_diagonal:
            counted[half.b_rows, half.a_rows] += 1
    assert counted[rows, rows].eq(1).all()
    assert counted.sum() == rows.stop**2
    assert len(halves) == (3 if bfloat16 else 7)


@pytest.mark.parametrize("columns", [2048, 41_943, 10**6])
def test_blocks_of_wide_rows_stay_small(columns):
    largest = max(block.stop - block.start for block in blocks.split_rows(1000, columns))
    assert largest <= max(blocks.STEP, blocks.KEPT_NUMBERS // columns)


@pytest.mark.parametrize("exponent", [-1e-6, -0.01, -1.0, -30.0])
def test_one_exponential_for_five_scales(exponent):
    """Relative errors, however near to zero or to minus one the terms are."""
    scales = (0.25, 0.5, 1.0, 2.0, 4.0)
    runs = gaussian_mixture.group_scales(scales)
    assert runs == [(4.0, 5)]
    over_largest = torch.full((8, 8), exponent, dtype=torch.float32)
    v = over_largest.double() * 4
    slope = gaussian_mixture.sum_slopes(over_largest, runs)
    excess = gaussian_mixture.sum_excess(over_largest.clone(), runs)
    exact_excess = sum(torch.expm1(v / s) for s in scales)
    exact_slope = sum(torch.exp(v / s) / s for s in scales)
    torch.testing.assert_close(excess.double(), exact_excess, rtol=5e-7, atol=0)
    torch.testing.assert_close(slope.double(), exact_slope, rtol=5e-6, atol=0)


def test_scales_that_are_not_halves_are_computed_separately():
    assert gaussian_mixture.group_scales((1.0, 3.0, 0.5)) == [(3.0, 1), (1.0, 2)]
    assert gaussian_mixture.group_scales([2.0**-k for k in range(7)]) == [(1.0, 5), (2.0**-5, 2)]


@pytest.mark.parametrize(
    ("shape", "wanted", "bound"),
    [
        ((1, 3000, 3000, 1024), {}, 16),
        ((1, 4000, 4000, 10), {"grad_x": True, "grad_y": True}, 10),
        ((2000, 64, 20, 16), {"grad_y": True}, 12),
    ],
    ids=str,
)
def test_memory_does_not_grow_with_the_number_of_pairs(shape, wanted, bound, generator):
    """In MB beyond inputs, gradients included; one kernel matrix takes 31 to 61 MB here."""
    classes, n, m, columns = shape
    x = torch.randn(classes, n, columns, generator=generator)
    y = torch.randn(classes, m, columns, generator=generator)
    assert peak_bytes(lambda: compute(tiled, x, y, Gaussian(), **wanted)) < bound * 2**20
