"""Colour profiles: converted to sRGB in training and in commands, ignored and named where they are damaged."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import icc
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.profiles import conversion_of, in_srgb
from sfumato.data.reading import decode, open_image, to_rgb

WHITE = (255, 255, 255)
COLOUR = (200, 60, 40)
PROPHOTO = icc.rgb(icc.PROPHOTO, 1.8, "ProPhoto test")


def in_prophoto(colour: tuple[int, ...]) -> tuple[int, ...]:
    """By the profiles' matrices, written out: sRGB values to ProPhoto values."""
    v = np.array(colour) / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(icc.PROPHOTO, icc.SRGB @ linear)
    return tuple(int(x) for x in np.rint(other.clip(0, 1) ** (1 / 1.8) * 255))


def middle(image: Image.Image) -> list[int]:
    return [int(v) for v in np.asarray(image.convert("RGB"))[4, 4]]


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
def test_prophoto_is_read_as_the_colour_that_it_shows(tmp_path: Path, name: str) -> None:
    stored = in_prophoto(COLOUR)
    assert abs(np.subtract(stored, COLOUR)).max() > 20  # what was read without the profile
    options = {"x.jpg": {"quality": 100, "subsampling": 0}, "x.webp": {"lossless": True}}.get(name, {})
    Image.new("RGB", (16, 16), stored).save(tmp_path / name, icc_profile=PROPHOTO, **options)
    assert middle(decode(tmp_path / name, WHITE)) == pytest.approx(COLOUR, abs=4)
    data = FolderDataset(FolderConfig(path=tmp_path, size=8))
    assert data[0].image[:, 4, 4].tolist() == pytest.approx(COLOUR, abs=4)
    assert any("ProPhoto test" in note and "converted to sRGB" in note for note in data.notes)


def test_what_a_command_reads_and_writes_is_srgb(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "P"):
        image = Image.new("RGB", (9, 9), in_prophoto(COLOUR))
        image = image.quantize(4) if mode == "P" else image.convert(mode)
        if mode == "RGBA":
            image.putalpha(77)
        image.save(tmp_path / "x.png", icc_profile=PROPHOTO)
        read = open_image(tmp_path / "x.png")
        assert (read.image.mode, len(read.notes)) == (mode, 1)
        assert middle(read.image) == pytest.approx(COLOUR, abs=4)
        assert "icc_profile" not in read.image.info
        if mode == "RGBA":
            assert read.image.getpixel((4, 4))[3] == 77  # type: ignore[index]
        read.image.save(tmp_path / "out.png")
        with Image.open(tmp_path / "out.png") as written:
            assert "icc_profile" not in written.info


def test_grey_profiles_change_the_tone_at_every_depth() -> None:
    dark = icc.grey(1.0)  # linear: a quarter of the light
    expected = 255 * (1.055 * 0.25 ** (1 / 2.4) - 0.055)
    for mode, value, white in (("L", 64, 255), ("LA", (64, 255), 255), ("I;16", 16384, 65535), ("F", 0.25, 1)):
        image = Image.new(mode, (8, 8), value)  # type: ignore[arg-type]
        image.info["icc_profile"] = dark
        made, note = in_srgb(image)
        assert (made.mode, "sRGB" in note) == (mode, True)
        seen = np.asarray(made, np.float64)
        assert (seen[..., 0] if seen.ndim == 3 else seen)[4, 4] / white * 255 == pytest.approx(expected, abs=2), mode
        assert middle(to_rgb(image, WHITE)) == pytest.approx([expected] * 3, abs=2), mode


def test_cmyk_and_lab(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 0, 255, 0)).save(tmp_path / "x.tif", icc_profile=icc.cmyk())
    plain = middle(Image.new("CMYK", (16, 16), (0, 0, 255, 0)))
    assert middle(decode(tmp_path / "x.tif", WHITE)) == pytest.approx([255, 255, 0], abs=6)
    read = open_image(tmp_path / "x.tif").image
    assert read.mode == "RGB"
    Image.new("CMYK", (16, 16), (0, 128, 0, 0)).save(tmp_path / "x.tif", icc_profile=icc.cmyk())
    half = middle(decode(tmp_path / "x.tif", WHITE))  # half the ink is half the way in Lab, not in RGB values
    assert half != pytest.approx(middle(Image.new("CMYK", (16, 16), (0, 128, 0, 0))), abs=6)
    assert plain == [255, 255, 0]
    lab = Image.frombytes("LAB", (8, 8), bytes([255, 0, 0]) * 64)
    assert middle(to_rgb(lab, WHITE)) == pytest.approx([255, 255, 255], abs=2)


def test_srgb_profiles_leave_the_pixels_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    expected = np.asarray(image).copy()
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(to_rgb(image, WHITE)), expected)
    assert in_srgb(image) == (image, "")


@pytest.mark.parametrize(
    ("given", "mode", "message"),
    [
        (PROPHOTO[:200], "RGB", "damaged"),
        (b"no profile at all", "RGB", "damaged"),
        (icc.cmyk(), "RGB", "is for CMYK and does not fit"),
        (icc.grey(1.8), "RGB", "is for GRAY and does not fit"),
    ],
)
def test_a_useless_profile_is_ignored_and_named(tmp_path: Path, given: bytes, mode: str, message: str) -> None:
    Image.new(mode, (16, 16), COLOUR).save(tmp_path / "x.png", icc_profile=given)
    assert middle(decode(tmp_path / "x.png", WHITE)) == list(COLOUR)
    read = open_image(tmp_path / "x.png")
    assert message in read.notes[0]
    assert read.notes[0].endswith("it is ignored")
    assert "icc_profile" not in read.image.info
    notes = FolderDataset(FolderConfig(path=tmp_path, size=8)).notes
    assert any(message in note for note in notes)


def test_colours_below_transparency_are_converted_before_they_are_laid_over() -> None:
    image = Image.new("RGBA", (8, 8), (*in_prophoto(COLOUR), 128))
    image.info["icc_profile"] = PROPHOTO
    assert middle(to_rgb(image, (0, 0, 0))) == pytest.approx([v * 128 / 255 for v in COLOUR], abs=4)
    assert conversion_of(image).name == "ProPhoto test"
