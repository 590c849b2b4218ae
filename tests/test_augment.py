"""DSA: every operation against a plain per-image reference; one draw serves real and synthetic."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from m3d_fast.augment import (
    CUTMIX_UNIFORMS,
    IMAGENET_NORMALS,
    IMAGENET_UNIFORMS,
    OPERATIONS,
    RGB_EIGENVALUES,
    RGB_EIGENVECTORS,
    UNIFORMS,
    augment,
    augment_imagenet,
    augment_resized_crop,
    cutmix,
    draw,
    parse_strategy,
)
from m3d_fast.common.errors import UserError

GROUPS, COUNT = 5, 3


def draws(groups: int = GROUPS) -> Tensor:
    return draw(groups, torch.Generator().manual_seed(3))


def images(channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return torch.randn(GROUPS, COUNT, channels, height, width)


def each(x: Tensor, u: Tensor, reference) -> Tensor:
    """Apply ``reference(image, draw)`` image by image."""
    return torch.stack(
        [torch.stack([reference(image, u[g].tolist()) for image in x[g]]) for g in range(len(x))]
    )


def color(image: Tensor, u: list[float]) -> Tensor:
    image = image + (u[1] - 0.5)
    grey = image.mean(0, keepdim=True)
    image = (image - grey) * (2 * u[2]) + grey
    return (image - image.mean()) * (u[3] + 0.5) + image.mean()


def crop(image: Tensor, u: list[float]) -> Tensor:
    """Shift by whole pixels with zero padding, as cutting a window out of a padded image does."""
    _, height, width = image.shape
    reach_x, reach_y = int(width * 0.125 + 0.5), int(height * 0.125 + 0.5)
    dx = math.floor(u[5] * (2 * reach_x + 1)) - reach_x
    dy = math.floor(u[6] * (2 * reach_y + 1)) - reach_y
    padded = torch.nn.functional.pad(image, (reach_x, reach_x, reach_y, reach_y))
    return padded[:, reach_y + dy :, reach_x + dx :][:, :height, :width]


def rotate(image: Tensor, u: list[float]) -> Tensor:
    angle = (u[9] - 0.5) * 30.0  # ours turns the sampling grid, torchvision the image: same sense
    return tv.affine(image, angle=-angle, translate=[0, 0], scale=1.0, shear=[0.0], interpolation=2)


def scale(image: Tensor, u: list[float]) -> Tensor:
    """Bilinear sampling at x * factor about the centre, written out pixel by pixel."""
    _, height, width = image.shape
    low = 1 / 1.2
    fx, fy = (low + v * (1.2 - low) for v in (u[7], u[8]))
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            y = (row + 0.5 - height / 2) * fy + height / 2 - 0.5
            x = (column + 0.5 - width / 2) * fx + width / 2 - 0.5
            for r in (math.floor(y), math.floor(y) + 1):
                for c in (math.floor(x), math.floor(x) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        weight = (1 - abs(y - r)) * (1 - abs(x - c))
                        result[:, row, column] += weight * image[:, r, c]
    return result


def cutout(image: Tensor, u: list[float]) -> Tensor:
    _, height, width = image.shape
    size_y, size_x = int(height / 2 + 0.5), int(width / 2 + 0.5)
    top, left = math.floor(u[10] * height) - size_y // 2, math.floor(u[11] * width) - size_x // 2
    image = image.clone()
    image[:, max(top, 0) : top + size_y, max(left, 0) : left + size_x] = 0
    return image


def flip(image: Tensor, u: list[float]) -> Tensor:
    return image.flip(-1) if u[0] < 0.5 else image


@pytest.mark.parametrize("side", [(12, 12), (9, 14)], ids=["square", "oblong"])
@pytest.mark.parametrize("reference", [flip, color, crop, scale, rotate, cutout])
def test_each_operation_is_the_per_image_reference(reference, side) -> None:
    x, u = images(height=side[0], width=side[1]), draws()
    expected = each(x, u, reference)
    torch.testing.assert_close(augment(x, u, (reference.__name__,)), expected, atol=3e-5, rtol=0)


def test_operations_follow_each_other_in_dsa_order() -> None:
    x, u = images(), draws()
    expected = each(x, u, lambda image, v: cutout(crop(color(flip(image, v), v), v), v))
    found = augment(x, u, parse_strategy("cutout_crop_color_flip"))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def test_one_geometric_operation_per_draw() -> None:
    x, u = images(), draws()
    references = (crop, scale, rotate)
    expected = each(x, u, lambda image, v: references[int(v[4] * 3)](image, v))
    found = augment(x, u, parse_strategy("rotate_crop_scale"))
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
    assert {int(v * 3) for v in draws(50)[:, 4].tolist()} == {0, 1, 2}


def test_real_and_synthetic_share_the_draw_of_their_class() -> None:
    u, operations = draws(), parse_strategy("_".join(OPERATIONS))
    real, synthetic = images(), torch.randn(GROUPS, 7, 3, 12, 12)
    synthetic[:, 2] = real[:, 1]
    found = augment(synthetic, u, operations)[:, 2]
    torch.testing.assert_close(found, augment(real, u, operations)[:, 1])
    # and no other class has it
    other = augment(synthetic, u.roll(1, 0), operations)[:, 2]
    assert (other - found).abs().flatten(1).amax(1).min() > 0.1


def test_an_image_does_not_depend_on_its_group() -> None:
    x, u = images(), draws()
    operations = parse_strategy("flip_color_crop_scale_rotate_cutout")
    alone = augment(x[2:3, 1:2], u[2:3], operations)
    torch.testing.assert_close(alone, augment(x, u, operations)[2:3, 1:2])


def test_gradient_reaches_the_images() -> None:
    x = torch.randn(2, 2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    u = draws(2).double()
    operations = parse_strategy("flip_color_crop_scale_rotate_cutout")
    assert torch.autograd.gradcheck(lambda x: augment(x, u, operations), (x,))


def test_grey_images_are_left_grey_by_saturation() -> None:
    x, u = images(channels=1), draws()
    expected = each(x, u, color)
    torch.testing.assert_close(augment(x, u, ("color",)), expected, atol=1e-5, rtol=0)


def test_draws_are_uniform_and_seeded() -> None:
    u = draw(4000, torch.Generator().manual_seed(1))
    assert u.shape == (4000, UNIFORMS)
    assert torch.equal(u, draw(4000, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(u.mean(0), torch.full((UNIFORMS,), 0.5), atol=0.02, rtol=0)


def test_unknown_operation_is_named() -> None:
    with pytest.raises(UserError, match=r"expected operations among flip, .* got zoom"):
        parse_strategy("color_zoom")
    assert parse_strategy("none") == ()


def imagenet_draws(count: int, seed: int) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(count, IMAGENET_UNIFORMS, generator=stream)
    return uniforms, torch.randn(count, IMAGENET_NORMALS, generator=stream)


def test_imagenet_augmentation_keeps_means_near_and_varies_per_image() -> None:
    x = torch.rand(64, 3, 16, 16)
    found = augment_imagenet(x, *imagenet_draws(64, 0))
    assert found.shape == x.shape
    assert abs(found.mean().item() - x.mean().item()) < 0.05
    assert (found - x).abs().flatten(1).mean(1).min() > 0.01
    assert torch.equal(found, augment_imagenet(x, *imagenet_draws(64, 0)))


def test_imagenet_crop_of_a_ramp_stays_inside_the_image() -> None:
    # colour jitter off the table: a ramp along x, cropped and resized, is still linear in x
    ramp = torch.linspace(0, 1, 32).expand(16, 3, 32, 32)
    found = augment_imagenet(ramp, *imagenet_draws(16, 1))
    inner = found[:, :, 8:24, 4:28]
    curvature = inner.diff(dim=-1).diff(dim=-1).abs().amax((1, 2, 3))
    assert curvature.max() < 1e-3
    slopes = inner.diff(dim=-1).mean((1, 2, 3))
    assert (slopes < 0).any()
    assert (slopes > 0).any()


def test_a_resized_crop_is_a_crop_that_is_resized() -> None:
    """A quarter of the area, in the middle; the second image is flipped."""
    x = torch.rand(2, 3, 32, 32)
    # area 0.08 + 0.92 u, aspect 3/4 (16/9)^u, flipped below 1/2, place
    u = torch.tensor([[0.17 / 0.92, 0.5, flip, 0.5, 0.5] for flip in (0.9, 0.1)])
    found = augment_resized_crop(x, u)
    expected = torch.nn.functional.interpolate(x[:, :, 8:24, 8:24], size=(32, 32), mode="bilinear")
    expected[1] = expected[1].flip(-1)
    # at its border a crop is interpolated with what is beside it
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
    whole = augment_resized_crop(x, torch.tensor([[1.0, 0.5, 0.9, 0.5, 0.5]]).expand(2, -1))
    torch.testing.assert_close(whole, x)


def test_cutmix_pastes_a_box_and_weighs_labels_by_area() -> None:
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 10, 10)
    labels = torch.arange(8)
    seen = []
    for seed in range(20):
        stream = torch.Generator().manual_seed(seed)
        uniforms = torch.rand(CUTMIX_UNIFORMS, generator=stream)
        order = torch.randperm(8, generator=stream)
        mixed, pasted, kept = cutmix(x, labels, 0.5, uniforms, order)
        own = mixed == labels.view(-1, 1, 1, 1)
        assert torch.equal(
            torch.where(own, 0.0, mixed), torch.where(own, 0, pasted.view(-1, 1, 1, 1)).float()
        )
        moved = pasted != labels
        shares = own.float().mean((1, 2, 3))[moved]
        torch.testing.assert_close(shares, kept.expand_as(shares))
        seen.append(kept.item())
    assert seen.count(1.0) > 3, "half of the batches stay as they are"
    assert min(seen) < 0.7


def test_one_of_the_operations_per_draw_and_each_of_them() -> None:
    """Each group shows exactly one operation of DSA, with its own numbers."""
    names = ("color", "crop", "cutout", "flip", "scale", "rotate")
    operations = parse_strategy("one:" + "_".join(names))
    images, draws = torch.rand(6, 2, 3, 16, 16), torch.rand(6, UNIFORMS)
    draws[:, 0] = (torch.arange(6) + 0.25) / 6  # the choice, and a flip that flips
    result = augment(images, draws, operations)
    for group, name in enumerate(names):
        numbers = draws[group : group + 1].clone()
        numbers[:, 0] = 0.25
        numbers[:, 4] = 0.5  # of one geometric operation the first is chosen
        expected = augment(images[group : group + 1], numbers, (name,))
        torch.testing.assert_close(result[group : group + 1], expected, atol=1e-6, rtol=1e-5)
        assert not torch.equal(result[group], images[group])
    draws[3, 0] = (3 + 0.75) / 6
    assert torch.equal(augment(images, draws, operations)[3], images[3]), "half of the flips"


def test_one_of_unknown_operations_is_refused() -> None:
    with pytest.raises(UserError, match="got colour"):
        parse_strategy("one:colour_crop")


def test_lighting_noise_lies_along_the_principal_axes_of_colour() -> None:
    """Of a constant image, jitter leaves the colour's shade; without it only the noise is left."""
    uniforms, normals = imagenet_draws(6, 2)
    uniforms[:, 5:8] = 0.5  # factors of 1
    x = torch.full((6, 3, 8, 8), 0.5)
    noise = augment_imagenet(x, uniforms, normals)[:, :, 4, 4] - 0.5
    values, vectors = torch.tensor(RGB_EIGENVALUES), torch.tensor(RGB_EIGENVECTORS)
    torch.testing.assert_close(noise, (0.1 * normals * values) @ vectors.T, atol=1e-5, rtol=0)
