from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from m3d_fast.loaders import DataError
from m3d_fast.loaders.image_files.decoding import decode_image


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(width * height)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("width", "height"), [(40, 24), (24, 40), (16, 16), (17, 50), (9, 12), (33, 16)]
)
def test_geometry_is_that_of_resize_and_centre_crop(
    width: int, height: int, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(noise(width, height)).save(path)
    published = transforms.Compose(
        [transforms.Resize(16), transforms.CenterCrop(16), transforms.PILToTensor()]
    )
    with Image.open(path) as image:
        expected = published(image.convert("RGB"))
    assert torch.equal(decode_image(path, size=16), expected)


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    pixels = noise(32, 16)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2).copy()).save(tmp_path / "tall.png")
    wide, tall = (decode_image(tmp_path / name, size=16) for name in ("wide.png", "tall.png"))
    centre = torch.from_numpy(pixels[:, 8:24].transpose(2, 0, 1).copy())
    assert torch.equal(wide, centre)
    assert torch.equal(tall, centre.transpose(1, 2))


def test_shrinking_averages(tmp_path: Path) -> None:
    # a fine chequered pattern is grey from afar; without antialiasing it would stay black or white
    pattern = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(pattern).save(tmp_path / "fine.png")
    inner = decode_image(tmp_path / "fine.png", size=8)[:, 1:-1, 1:-1]
    assert ((inner >= 126) & (inner <= 129)).all()


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    pixels = noise(8, 8, 1)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    decoded = decode_image(tmp_path / "grey.png", size=8)
    assert torch.equal(decoded, torch.from_numpy(pixels).expand(3, 8, 8))


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    pixels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    decoded = decode_image(tmp_path / "deep.png", size=8)
    assert decoded[0].flatten().tolist() == list(range(0, 256, 4))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    pixels = noise(8, 8, 4)
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    expected = torch.from_numpy(pixels[..., :3].transpose(2, 0, 1).copy())
    assert torch.equal(decode_image(tmp_path / "clear.png", size=8), expected)


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 250, 20, 30])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    decoded = decode_image(tmp_path / "palette.png", size=8)
    assert decoded[:, 3, 3].tolist() == [250, 20, 30]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red = decode_image(tmp_path / "print.jpg", size=8)[:, 4, 4].int()
    assert (red - torch.tensor([255, 0, 0])).abs().max() <= 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("keep", [0, 10, 200])
def test_a_damaged_image_is_named(suffix: str, keep: int, tmp_path: Path) -> None:
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    Image.fromarray(noise(40, 40)).save(good)
    bad.write_bytes(good.read_bytes()[:keep])
    message = rf"the image {bad} cannot be decoded \(.+\): replace or remove it"
    with pytest.raises(DataError, match=message):
        decode_image(bad, size=8)
