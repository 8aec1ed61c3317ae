"""Masks as people and programs save them, for training and for use; images that are none."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data.make_images import noise
from sfumato.data.conditions.config import MaskConfig
from sfumato.data.conditions.holes import random_hole
from sfumato.data.conditions.masked import Holes
from sfumato.data.masks import read_mask
from sfumato.errors import UserError
from sfumato.tasks.inpainting import hole_of

HOLE = np.zeros((64, 48), bool)
HOLE[10:20, 5:15] = True


def of(low: object, high: object, dtype: Any = np.uint8) -> Image.Image:
    """A mask of two values or colours."""
    values = np.where(HOLE[..., None], np.array(high, ndmin=1), np.array(low, ndmin=1)).astype(dtype)
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)


def erased(image: Image.Image) -> Image.Image:
    """The image with the hole erased, as editors do it."""
    image = image.convert("RGBA")
    pixels = np.asarray(image).copy()
    pixels[HOLE] = 0
    return Image.fromarray(pixels)


FORMS: dict[str, tuple[Image.Image, str]] = {
    "black and white": (of(0, 255), ""),
    "one bit": (Image.fromarray(HOLE), ""),
    "white in colour": (of((0, 0, 0), (255, 255, 255)), ""),
    "opaque": (of((0, 0, 0, 255), (255, 255, 255, 255)), ""),
    "0 and 1": (of(0, 1), "from 0 to 1"),
    "0 and 127": (of(0, 127), "from 0 to 127"),
    "grey on black in 16 bits": (of(0, 255, np.uint16), "from 0 to 255: those above 127.5, 100 pixels"),
    "16 bits": (of(0, 65535, np.uint16), "from 0 to 65535"),
    "32 bits": (of(0, 1, np.int32), "from 0 to 1"),
    "floats": (of(0, 1, np.float32), "from 0 to 1"),
    "red on black": (of((0, 0, 0), (255, 0, 0)), "from 0 to 76"),
    "blue on black": (of((0, 0, 0), (0, 0, 255)), "from 0 to 29"),
    "white on blue": (of((0, 0, 255), (255, 255, 255)), "from 29 to 255"),
    "palette": (of((0, 0, 0), (128, 0, 0)).quantize(2), "from 0 to 38"),
    "erased from a photo": (erased(noise(0, 64, 48)), "the 100 transparent pixels are the hole"),
    "erased from white": (erased(Image.new("RGB", (48, 64), "white")), "100 transparent"),
    "white on a transparent layer": (of((0, 0, 0, 0), (255, 255, 255, 255)), "100 painted on a transparent layer"),
    "erased from grey": (erased(noise(0, 64, 48)).convert("LA"), "100 transparent"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_hole_in_use_and_in_training(form: str, tmp_path: Path) -> None:
    image, note = FORMS[form]
    read = read_mask(image, "the mask")
    assert np.array_equal(read.hole, HOLE)
    assert note in " ".join(read.notes)
    assert bool(read.notes) == bool(note)
    assert np.array_equal(hole_of(image, noise(1, 64, 48)).numpy(), HOLE)
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks" / ("a.tif" if image.mode in ("F", "I") else "a.png"))
    assert np.array_equal(Holes(MaskConfig(folder="masks"), (64, 48), tmp_path)(0), HOLE)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = BytesIO()
    image.save(stream, "JPEG", quality=quality)
    decoded = Image.open(stream)
    decoded.load()
    return decoded


@pytest.mark.parametrize("kind", ["box", "strokes", "medium", "thick"])
def test_soft_and_compressed_masks_pass(kind: Any) -> None:
    hole = random_hole([kind], (128, 160), np.random.default_rng(5))
    sharp = Image.fromarray(hole).convert("L")
    soft = [sharp.filter(ImageFilter.GaussianBlur(r)) for r in (1, 3, 8)] + [sharp.filter(ImageFilter.BoxBlur(6))]
    for image in [*soft, *(jpeg(sharp, q) for q in (5, 20, 75)), jpeg(soft[1], 20), sharp.convert("RGB")]:
        assert (read_mask(image, "the mask").hole == hole).mean() > 0.85
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 160).astype(np.uint8), (128, 1)))
    assert read_mask(ramp, "the mask").hole.mean() == pytest.approx(0.5, abs=0.01)


def smooth(seed: int) -> Image.Image:
    return noise(seed, 5, 5).resize((48, 64), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("image", [noise(0, 64, 48), noise(0, 64, 48).convert("L"), smooth(1), smooth(2).convert("L")])
def test_an_image_is_no_mask(image: Image.Image) -> None:
    with pytest.raises(UserError, match=r"the mask looks like an image, not like a mask: .* \(IMAGE MASK\)"):
        read_mask(image, "the mask")


def test_a_image_of_two_colours_given_for_the_mask_is_found_by_the_mask_given_for_the_image() -> None:
    with pytest.raises(UserError, match=r"the image is black and white and the mask is not: .* \(IMAGE MASK\)"):
        hole_of(of((90, 20, 20), (200, 210, 90)), of(0, 255))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (of(0, 0), "the mask has no hole: paint white .* black everywhere"),
        (of(7, 7), "the mask has no hole: .* of the value 7 everywhere"),
        (of(255, 255), "the mask is all hole: it is white everywhere"),
        (of(65535, 65535, np.uint16), "is all hole"),
        (of(0, float("nan"), np.float32), "the mask holds 100 values that are not finite"),
    ],
)
def test_masks_without_a_hole(image: Image.Image, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_mask(image, "the mask")
