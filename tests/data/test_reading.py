"""Decoding: every pixel mode to 8-bit RGB, EXIF rotation, reduced JPEG decoding, damaged files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.make_images import noise, truncated
from sfumato.data.dataset import UnreadableImage
from sfumato.data.reading import colour, decode, read_header, to_rgb
from sfumato.errors import UserError

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def stored(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: object) -> Image.Image:
    image.save(tmp_path / name, **options)  # type: ignore[arg-type]
    return decode(tmp_path / name, WHITE)


def pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 32768, (128, 128, 128)),
    ],
)
def test_modes_through_png(tmp_path: Path, mode: str, value: object, expected: tuple[int, ...]) -> None:
    assert pixel(stored(tmp_path, Image.new(mode, (4, 4), value))) == expected  # type: ignore[arg-type]


def test_wide_grey_keeps_its_gradient(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    seen = np.asarray(stored(tmp_path, Image.fromarray(ramp)))[..., 0]
    assert np.array_equal(seen, np.rint(ramp / 257).astype(np.uint8))
    in_32_bits = to_rgb(Image.fromarray(ramp.astype(np.int32)), WHITE)
    assert np.array_equal(np.asarray(in_32_bits)[..., 1], seen)
    assert np.array_equal(np.asarray(stored(tmp_path, Image.fromarray(ramp), "x.tiff"))[..., 2], seen)


def test_float_grey() -> None:
    assert pixel(to_rgb(Image.new("F", (2, 2), 0.5), WHITE)) == (128, 128, 128)
    assert pixel(to_rgb(Image.new("F", (2, 2), 200.0), WHITE)) == (200, 200, 200)
    assert pixel(to_rgb(Image.new("F", (2, 2), float("nan")), WHITE)) == (0, 0, 0)


def test_palette_and_grey_with_a_transparent_value(tmp_path: Path) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    assert pixel(stored(tmp_path, palette)) == (200, 0, 0)
    palette.info["transparency"] = 1
    palette.save(tmp_path / "p.png", transparency=1)
    assert pixel(decode(tmp_path / "p.png", BLACK)) == (0, 0, 0)
    assert pixel(decode(tmp_path / "p.png", (0, 128, 255))) == (0, 128, 255)
    Image.new("L", (4, 4), 7).save(tmp_path / "l.png", transparency=7)
    assert pixel(decode(tmp_path / "l.png", WHITE)) == (255, 255, 255)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert pixel(decode(tmp_path / "rgb.png", WHITE)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red, green, blue = pixel(stored(tmp_path, Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "x.jpg", quality=100))
    assert red > 240
    assert max(green, blue) < 15


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in [(255, 0, 0), (0, 255, 0)]]
    for name in ("x.gif", "x.webp"):
        seen = pixel(stored(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], lossless=True))
        assert seen[0] > 250, name
        assert seen[1] < 5, name


def upright() -> Image.Image:
    image = Image.new("RGB", (32, 16), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 16, 16))  # left half red
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    transpose = Image.Transpose
    back = [transpose.FLIP_LEFT_RIGHT, transpose.ROTATE_180, transpose.FLIP_TOP_BOTTOM, transpose.TRANSPOSE]
    back += [transpose.ROTATE_90, transpose.TRANSVERSE, transpose.ROTATE_270]
    image = upright()
    if orientation > 1:
        image = image.transpose(back[orientation - 2])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("x.png", "x.jpg"):
        seen = np.asarray(stored(tmp_path, image, name, exif=exif)).astype(int)
        assert seen.shape == (16, 32, 3), name
        assert abs(seen[:, :14] - (255, 0, 0)).max() < 12, name
        assert abs(seen[:, 18:] - (0, 0, 255)).max() < 12, name


def test_damaged_exif_leaves_the_image(tmp_path: Path) -> None:
    upright().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03")
    assert decode(tmp_path / "x.jpg", WHITE).size == (32, 16)


def test_large_jpeg_is_decoded_at_reduced_scale_but_never_too_small(tmp_path: Path) -> None:
    noise(0, 256, 512).save(tmp_path / "x.jpg")
    assert decode(tmp_path / "x.jpg", WHITE).size == (512, 256)
    assert decode(tmp_path / "x.jpg", WHITE, at_least=(64, 64)).size == (128, 64)
    assert decode(tmp_path / "x.jpg", WHITE, at_least=(100, 60)).size == (256, 128)
    noise(0, 256, 512).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", WHITE, at_least=(64, 64)).size == (512, 256)


def test_every_truncation_is_an_unreadable_image(tmp_path: Path) -> None:
    for name in ("x.png", "x.jpg", "x.webp", "x.bmp", "x.gif", "x.tiff"):
        noise(1, 32, 32).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        for share in (0.0, 0.02, 0.3, 0.8):
            (tmp_path / name).write_bytes(data[: int(len(data) * share)])
            with pytest.raises(UnreadableImage) as caught:
                decode(tmp_path / name, WHITE)
            assert caught.value.path == str(tmp_path / name)
            assert caught.value.reason
    with pytest.raises(UnreadableImage):
        decode(tmp_path / "missing.png", WHITE)
    with pytest.raises(UnreadableImage):
        decode(tmp_path, WHITE)


def test_damage_within_a_file_is_noticed(tmp_path: Path) -> None:
    noise(1, 32, 32).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UnreadableImage):
        decode(tmp_path / "x.png", WHITE)


def test_the_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    noise(0, 64, 48).save(tmp_path / "a.bmp")
    seen = read_header(tmp_path / "a.bmp")
    assert (seen.width, seen.height) == (48, 64)
    truncated(tmp_path / "half.png")
    assert read_header(tmp_path / "half.png").width == 32


def test_colours() -> None:
    assert colour("white") == WHITE
    assert colour("#102030") == (16, 32, 48)
    with pytest.raises(UserError, match="background 'plaid' is not a colour"):
        colour("plaid")
