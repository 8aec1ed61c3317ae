"""Images above the limit of pixels, read a band of rows at a time: the same pixels as decoded at once."""

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_ordinary_images import pixels

from sfumato.data import opening, reading, room
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.opening import opened
from sfumato.data.parts import bands_of
from sfumato.data.reading import decode, decode_reduced, read_header
from sfumato.data.room import Room

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
    data = FolderDataset(FolderConfig(path=root, size=16, max_pixels=int(203 * 301 / 1.25) + 1))
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


@pytest.mark.parametrize(("name", "most"), [("x.png", 1600), ("x.bmp", 1000), ("x.jpg", 500)])
def test_images_may_have_as_many_pixels_as_are_read_in_two_seconds(tmp_path: Path, name: str, most: int) -> None:
    """By how quickly a format is decoded; the message names the setting and the value that reads the image."""
    pixels(40, 50, "RGB").save(tmp_path / name)
    read_header(tmp_path / name, most)
    with pytest.raises(
        UnreadableImage,
        match=rf"50x40 pixels exceed data\.max_pixels = {most - 1} more than {2000 / most:g} times: "
        rf"raise it to {most} to read the image, slowly, or shrink the image",
    ):
        read_header(tmp_path / name, most - 1)


def test_a_large_compressed_image_is_left_out_for_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 1000)
    pixels(40, 50, "RGB").save(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match=r", and PNG images of this size take over two seconds each: raise it to"):
        read_header(tmp_path / "x.png", 1000)
    read_header(tmp_path / "x.png", 1600)


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


def test_threads_share_the_memory_of_what_they_decode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three images only two fit at a time; one that exceeds the whole room is decoded alone."""
    monkeypatch.setattr(reading, "PIXELS", shared := Room(2 * 40 * 50 * 5))
    taken: list[int] = []

    def slow(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
        time.sleep(0.02)
        taken.append(shared.taken)
        return image

    monkeypatch.setattr(reading, "to_rgb", slow)
    pixels(40, 50, "RGB").save(tmp_path / "fits.png")
    pixels(80, 90, "RGB").save(tmp_path / "large.png")
    with ThreadPoolExecutor(4) as pool:
        for name in ["fits.png"] * 4 + ["large.png", "fits.png"]:
            pool.submit(decode, tmp_path / name, WHITE)
    assert len(taken) == 6
    assert set(taken) <= {10_000, 20_000, 36_000}
    assert taken.count(36_000) == 1
    assert shared.taken == 0


def test_a_large_file_that_is_held_as_a_whole_is_decoded_alone() -> None:
    """It holds the whole room, and needs no more of it for its pixels; small files share a room of their own."""
    with room.holding_file(room.FILES.size):
        assert room.PIXELS.taken == room.PIXELS.size
        with room.PIXELS.holding(5):
            assert room.PIXELS.taken == room.PIXELS.size
    with room.holding_file(1000):
        assert (room.FILES.taken, room.PIXELS.taken) == (1000, 0)
    assert (room.FILES.taken, room.PIXELS.taken) == (0, 0)


@pytest.mark.parametrize("name", ["x.webp", "x.avif"])
def test_what_is_read_for_its_header_is_counted(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_IN_MEMORY", 0)
    pixels(40, 50, "RGB").save(tmp_path / name)
    with opened(tmp_path / name):
        assert room.FILES.taken == (tmp_path / name).stat().st_size
    assert room.FILES.taken == 0


@pytest.mark.parametrize(("subsampling", "bytes_a_pixel"), [(2, 3), (0, 6)])
def test_a_progressive_jpeg_takes_two_bytes_a_coefficient(tmp_path: Path, subsampling: int, bytes_a_pixel: int) -> None:
    pixels(40, 50, "RGB").save(tmp_path / "x.jpg", progressive=True, subsampling=subsampling)
    read_header(tmp_path / "x.jpg", enough := 2000 * bytes_a_pixel // 3)
    with pytest.raises(UnreadableImage, match="pixels exceed"):
        read_header(tmp_path / "x.jpg", enough - 1)


def test_a_compressed_strip_counts_twice(tmp_path: Path) -> None:
    pixels(40, 50, "RGB").save(tmp_path / "x.tif", compression="tiff_lzw", strip_size=2**20)
    read_header(tmp_path / "x.tif", 6667)
    with pytest.raises(UnreadableImage, match="cannot be read in parts and take 10 bytes a pixel"):
        read_header(tmp_path / "x.tif", 6665)


def test_a_small_png_inflates_no_more_than_a_band(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one colour, a thousandth of a file is read at once and holds all of its rows."""
    Image.new("RGB", (4000, 1000)).save(tmp_path / "x.png")
    monkeypatch.setattr("sfumato.data.parts._BAND", 2**18)
    with (tmp_path / "x.png").open("rb") as stream, Image.open(stream) as image:
        bands = bands_of(image, stream)
        assert bands is not None
        next(bands)
        tracemalloc.start()
        next(bands)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("depth", [1, 8])
def test_bands_of_a_png_take_little_once_they_are_converted(tmp_path: Path, depth: int) -> None:
    Image.new("1" if depth == 1 else "L", (9000, 1500)).save(tmp_path / "x.png")
    with (tmp_path / "x.png").open("rb") as stream, Image.open(stream) as image:
        bands = bands_of(image, stream)
        assert bands is not None
        assert max(4 * band.width * band.height for band in bands) <= 2**22
