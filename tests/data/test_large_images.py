"""Images above the limit of pixels, read a band of rows at a time: the same pixels as decoded at once."""

from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_ordinary_images import pixels

from sfumato.data import reading
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.parts import bands_of
from sfumato.data.reading import decode, decode_reduced, read_header

WHITE = (255, 255, 255)
FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("RGB", "x.png", {}),
    "png grey": ("L", "x.png", {}),
    "png alpha": ("RGBA", "x.png", {}),
    "png grey alpha": ("LA", "x.png", {}),
    "png palette": ("P", "x.png", {}),
    "png bit": ("1", "x.png", {}),
    "png 16 bits": ("I;16", "x.png", {}),
    "tiff plain": ("RGB", "x.tif", {}),
    "tiff lzw": ("RGB", "x.tif", {"compression": "tiff_lzw"}),
    "tiff deflate": ("RGBA", "x.tif", {"compression": "tiff_adobe_deflate"}),
    "tiff fax": ("1", "x.tif", {"compression": "group4"}),
    "tiff 16 bits": ("I;16", "x.tif", {"compression": "tiff_lzw"}),
    "tiff 16 bits, big-endian": ("I;16B", "x.tif", {"compression": "tiff_lzw"}),
    "tiff palette": ("P", "x.tif", {"compression": "tiff_lzw"}),
    "bmp": ("RGB", "x.bmp", {}),
    "ppm": ("RGB", "x.ppm", {}),
    "tga": ("RGB", "x.tga", {}),
    "webp": ("RGB", "x.webp", {"lossless": True}),
    "gif": ("P", "x.gif", {}),
}


@pytest.mark.parametrize("form", FORMS)
def test_bands_are_the_whole(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, name, options = FORMS[form]
    image = pixels(203, 301, "I;16" if mode == "I;16B" else mode)
    if mode == "I;16B":
        image = Image.frombytes(mode, image.size, np.asarray(image).astype(">u2").tobytes())
    if name == "x.tif":
        options = {"strip_size": 4000, **options}
    image.save(tmp_path / name, **options)
    whole = decode(tmp_path / name, WHITE)
    monkeypatch.setattr(reading, "_LARGE", 100)
    monkeypatch.setattr("sfumato.data.parts._BAND", 301 * 3 * 11)
    assert np.array_equal(decode(tmp_path / name, WHITE, (400, 400)), whole)
    read = decode_reduced(tmp_path / name, WHITE, (40, 40))
    assert read.size == (203, 301)
    shrunk = np.asarray(whole.reduce(5)).astype(int)
    # colours that were weighted by their alpha have been rounded once more
    assert np.abs(np.asarray(read.image) - shrunk).max() <= (2 if mode in ("RGBA", "LA") else 1)


def test_an_image_above_the_limit_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pixels(203, 301, "RGB")
    expected = FolderDataset(FolderConfig(path=_saved(image, tmp_path / "one"), size=16))[0].image
    monkeypatch.setattr(reading, "_LARGE", 100)
    root = tmp_path / "all"
    for name in ("x.png", "x.tif", "x.bmp", "x.jpg"):
        _saved(image, root, name)
    data = FolderDataset(FolderConfig(path=root, size=16, max_pixels=203 * 301 // 3))
    assert len(data) == 4
    for i in range(4):
        difference = (data[i].image.int() - expected.int()).abs()
        assert difference.float().mean() < 4, data.name(i)


def _saved(image: Image.Image, root: Path, name: str = "x.png") -> Path:
    root.mkdir(exist_ok=True)
    image.save(root / name)
    return root


def test_rotation_and_profile_of_a_large_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import icc

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = icc.rgb(icc.PROPHOTO, 1.8, "ProPhoto test")
    pixels(203, 301, "RGB").save(tmp_path / "x.png", exif=exif, icc_profile=profile)
    whole = decode(tmp_path / "x.png", WHITE)
    monkeypatch.setattr(reading, "_LARGE", 100)
    read = decode_reduced(tmp_path / "x.png", WHITE, (400, 400))
    assert read.size == (301, 203)
    assert np.array_equal(read.image, whole)


def test_the_message_names_the_setting(tmp_path: Path) -> None:
    image = pixels(40, 50, "RGB")
    image.save(tmp_path / "x.webp")
    image.save(tmp_path / "x.jpg", progressive=True)
    image.save(tmp_path / "x.png")
    for name in ("x.webp", "x.jpg"):
        with pytest.raises(
            UnreadableImage, match=r"50x40 pixels exceed data\.max_pixels = 1999, and it cannot be read"
        ):
            read_header(tmp_path / name, 1999)
    read_header(tmp_path / "x.jpg", 2000)
    read_header(tmp_path / "x.png", 500)
    with pytest.raises(
        UnreadableImage, match=r"50x40 pixels exceed data\.max_pixels = 499 more than 4 times: raise it"
    ):
        read_header(tmp_path / "x.png", 499)


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.bmp"])
def test_a_large_file_that_is_cut_off_is_unreadable(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels(203, 301, "RGB").save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    monkeypatch.setattr(reading, "_LARGE", 100)
    with pytest.raises(UnreadableImage):
        decode(tmp_path / name, WHITE, (40, 40))


@pytest.mark.parametrize(("name", "bytes_a_pixel"), [("x.webp", 16), ("x.jp2", 19), ("x.avif", 10), ("x.tif", 17)])
def test_what_is_decoded_as_a_whole_may_have_fewer_pixels(tmp_path: Path, name: str, bytes_a_pixel: int) -> None:
    """As many as take the memory of `max_pixels` in RGB."""
    image = Image.fromarray(np.zeros((40, 50), np.float32)) if name == "x.tif" else pixels(40, 50, "RGB")
    image.save(tmp_path / name)
    enough = -(-2000 * bytes_a_pixel // 3)
    read_header(tmp_path / name, enough)
    with pytest.raises(UnreadableImage, match=rf"50x40 pixels exceed the 1999 that data\.max_pixels = {enough - 1} "):
        read_header(tmp_path / name, enough - 1)


def test_large_images_are_decoded_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the scan and of the reading ahead would add up what each image takes."""
    monkeypatch.setattr(reading, "_AT_ONCE", 1000)
    monkeypatch.setattr(reading, "_ONE_LARGE", lock := Lock())
    held = []
    monkeypatch.setattr(reading, "to_rgb", lambda image, background: held.append(lock.locked()) or image)
    pixels(40, 50, "RGB").save(tmp_path / "large.png")
    pixels(4, 5, "RGB").save(tmp_path / "small.png")
    for name in ("large.png", "small.png"):
        decode(tmp_path / name, WHITE)
    assert held == [True, False]


@pytest.mark.parametrize("depth", [1, 8])
def test_bands_of_a_png_take_little_once_they_are_converted(tmp_path: Path, depth: int) -> None:
    Image.new("1" if depth == 1 else "L", (9000, 1500)).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("rb") as stream, Image.open(stream) as image:
        bands = bands_of(image, stream)
        assert bands is not None
        assert max(4 * band.width * band.height for band in bands) <= 2**22
