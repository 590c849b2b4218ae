"""The factor's round trip; files that come back as they were, or say what is wrong."""

import errno
import os

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.v2.functional import pil_to_tensor

from m3d_fast import SyntheticSet
from m3d_fast.common.errors import UserError
from m3d_fast.run.pictures import save_grid
from m3d_fast.synthetic import FORMAT, StoredImages, check_factor, decode, encode, tile_edges


def a_set(factor: int = 2) -> SyntheticSet:
    return SyntheticSet(
        images=torch.rand(6, 3, 16, 16),
        labels=torch.tensor([0, 0, 1, 1, 2, 2]),
        class_names=("a", "b/c", "d"),
        factor=factor,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        info={"dataset": "folder", "method": "m3d", "iterations": 7, "seed": 1, "version": "0"},
    )


def test_tiles_of_224_pixels_by_3_are_75_75_74() -> None:
    assert tile_edges(224, 3) == [(0, 75), (75, 150), (150, 224)]


@pytest.mark.parametrize(("size", "factor"), [(16, 2), (17, 3), (12, 1)])
def test_decode_is_cut_and_bilinear_up_sampling(size: int, factor: int) -> None:
    pixels = torch.rand(4, 5, 3, size, size)
    found = decode(pixels, factor)
    assert found.shape == (4, 5 * factor**2, 3, size, size)
    for image in range(5):
        for tile in range(factor**2):
            top, bottom = tile_edges(size, factor)[tile // factor]
            left, right = tile_edges(size, factor)[tile % factor]
            cut = pixels[:, image, :, top:bottom, left:right]
            expected = F.interpolate(cut, (size, size), mode="bilinear")
            torch.testing.assert_close(found[:, image * factor**2 + tile], expected)


@pytest.mark.parametrize(("channels", "size", "factor"), [(1, 28, 2), (3, 32, 3), (3, 16, 1)])
def test_stored_images_are_the_very_decoded_ones(channels: int, size: int, factor: int) -> None:
    pixels = torch.rand(7, channels, size, size)
    stored, whole = StoredImages(pixels, factor), decode(pixels, factor)
    assert len(stored) == len(whole) == 7 * factor**2
    for batch in torch.randperm(len(whole)).split(10):
        assert torch.equal(stored[batch], whole[batch])
    few = torch.tensor([0, 0, 6 * factor**2])
    assert torch.equal(stored[few], whole[few])


def test_stored_bytes_are_scaled() -> None:
    stored = StoredImages(torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1))
    scaled = stored[torch.tensor([255, 0, 51])].flatten()
    assert scaled.tolist() == torch.tensor([1.0, 0.0, 51 / 255]).tolist()


def test_encode_then_decode_returns_smooth_images() -> None:
    ramp = torch.linspace(0, 1, 16).view(1, 1, 1, 1, 16) * torch.rand(2, 8, 3, 1, 1)
    images = ramp.expand(2, 8, 3, 16, 16)
    again = decode(encode(images, 2), 2)
    inside = (..., slice(2, -2), slice(2, -2))  # the border is clamped by both samplings
    torch.testing.assert_close(again[inside], images[inside], atol=0.02, rtol=0)


def test_decode_then_encode_keeps_constant_tiles() -> None:
    tiles = torch.rand(2, 3, 1, 2, 2).repeat_interleave(8, -1).repeat_interleave(8, -2)
    torch.testing.assert_close(encode(decode(tiles, 2), 2), tiles)


def test_decode_is_differentiable() -> None:
    pixels = torch.rand(1, 2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: decode(p, 2), (pixels,))


@pytest.mark.parametrize(("factor", "size"), [(0, 28), (8, 28), (-1, 32)])
def test_useless_factor_is_refused(factor: int, size: int) -> None:
    with pytest.raises(UserError, match="factor"):
        check_factor(factor, size)


def test_saved_set_comes_back(tmp_path) -> None:
    before = a_set()
    before.save(tmp_path / "set.safetensors")
    after = SyntheticSet.load(tmp_path / "set.safetensors")
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)
    assert after.class_names == before.class_names
    assert (after.factor, after.mean, after.std) == (2, before.mean, before.std)
    assert after.info == before.info
    assert (after.ipc, after.num_classes) == (2, 3)
    images, labels = after.decode()
    assert images.shape == (24, 3, 16, 16)
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_the_same_set_is_the_same_bytes(tmp_path) -> None:
    one = a_set()
    one.save(tmp_path / "one")
    SyntheticSet.load(tmp_path / "one").save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    header = (tmp_path / "one").read_bytes()[8:200]
    assert header.startswith(b'{"__metadata__":{"classes":')  # sorted, whatever the hash seed


def test_damaged_or_foreign_files_are_named(tmp_path) -> None:
    path = tmp_path / "set.safetensors"
    with pytest.raises(UserError, match="found no such file"):
        SyntheticSet.load(path)
    a_set().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"set\.safetensors.*damaged or foreign"):
        SyntheticSet.load(path)
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match="damaged or foreign"):
        SyntheticSet.load(path)
    save_file({"images": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="another kind"):
        SyntheticSet.load(path)
    save_file({"images": torch.zeros(1)}, path, {"format": FORMAT, "ipc": "1", "factor": "1"})
    with pytest.raises(UserError, match="found one without classes, labels, mean, std"):
        SyntheticSet.load(path)


def test_labels_out_of_range_are_refused(tmp_path) -> None:
    good = a_set()
    bad = SyntheticSet(good.images, good.labels + 1, good.class_names, 2, good.mean, good.std)
    bad.save(tmp_path / "set")
    with pytest.raises(UserError, match="expected labels from 0 to 2, got 1 to 3"):
        SyntheticSet.load(tmp_path / "set")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "set"
    a_set().save(path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
        a_set().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_an_image_folder_is_one_png_per_image(tmp_path) -> None:
    one = a_set()
    one.export(tmp_path / "png", "imagefolder", decoded=False)
    one.export(tmp_path / "tiles", "imagefolder")
    files = sorted((tmp_path / "png").rglob("*.png"))
    assert [f.parent.name for f in files] == ["0000_a"] * 2 + ["0001_b_c"] * 2 + ["0002_d"] * 2
    read = pil_to_tensor(Image.open(files[3])).float() / 255
    torch.testing.assert_close(read, one.images[3], atol=0.5 / 255 + 1e-6, rtol=0)
    assert len(list((tmp_path / "tiles").rglob("*.png"))) == 24


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_grid_is_a_row_per_class_on_white(channels: int, mode: str, tmp_path) -> None:
    rows = torch.rand(3, 2, channels, 16, 16)
    save_grid(rows, tmp_path / "grid.png")
    picture = Image.open(tmp_path / "grid.png")
    assert (picture.mode, picture.size) == (mode, (4 * (2 + 2 * 18), 4 * (2 + 3 * 18)))
    pixels = pil_to_tensor(picture)[:, ::4, ::4]
    shown = torch.zeros(pixels.shape, dtype=torch.bool)
    for label, images in enumerate(rows):
        for number, image in enumerate(images):
            top, left = 2 + 18 * label, 2 + 18 * number
            place = (..., slice(top, top + 16), slice(left, left + 16))
            torch.testing.assert_close(pixels[place] / 255, image, atol=0.5 / 255 + 1e-6, rtol=0)
            shown[place] = True
    assert (pixels[~shown] == 255).all()
