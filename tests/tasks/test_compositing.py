"""Outside the hole nothing changes, whatever the image's mode."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.images import from_pil
from sfumato.tasks.colour import drift, without_drift
from sfumato.tasks.compositing import composite, feathered, largest_change

H, W = 13, 17
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]


def image(mode: str) -> Image.Image:
    rng = np.random.default_rng(3)
    rgba = Image.fromarray(rng.integers(0, 256, (H, W, 4), dtype=np.uint8))
    match mode:
        case "I;16":
            return Image.fromarray(rng.integers(0, 65536, (H, W), dtype=np.uint16))
        case "I":
            return Image.fromarray(rng.integers(0, 65536, (H, W), dtype=np.int32))
        case "F":
            return Image.fromarray(rng.random((H, W), dtype=np.float32))
        case "P":
            made = rgba.convert("RGB").quantize(7)
            made.info["transparency"] = 2
            return made
        case "PA":
            return rgba.convert("RGB").quantize(7).convert("PA")
        case "LA" | "RGBA":
            return rgba.convert(mode)
        case _:
            return rgba.convert("RGB").convert(mode)


def hole() -> torch.Tensor:
    made = torch.zeros(H, W, dtype=torch.bool)
    made[4:12, 3:15] = True
    return made


@pytest.mark.parametrize("feather", [0, 2])
@pytest.mark.parametrize("mode", MODES)
def test_pixels_outside_stay_and_those_inside_become_the_generated(mode: str, feather: int) -> None:
    original, gone = image(mode), hole()
    # white in the whole: every mode can say that, but a palette only nearly
    result = composite(original, torch.ones(3, H, W), gone, feather)
    assert (result.mode, result.size) == (original.mode, original.size)
    before, after = np.asarray(original), np.asarray(result)
    assert np.array_equal(before[~gone.numpy()], after[~gone.numpy()])
    assert largest_change(original, result, gone) == 0
    if mode.endswith("A"):
        assert np.array_equal(before[..., -1], after[..., -1])
    if mode == "P":
        assert result.getpalette() == original.getpalette()
        assert result.info["transparency"] == 2
        assert 2 not in after[4 + feather : 12 - feather, 3 + feather : 15 - feather]
    if mode not in ("P", "PA"):
        middle = result.convert("RGB") if mode not in ("I", "I;16", "F") else None
        inside = np.asarray(middle)[4 + feather : 12 - feather, 3 + feather : 15 - feather] if middle else None
        if inside is not None:
            assert inside.min() >= 254
        else:
            white = {"I": 65535, "I;16": 65535, "F": 1.0}[mode]
            assert (after[7:9, 7:10] == white).all()


def test_a_palette_takes_its_nearest_colours() -> None:
    original = Image.new("P", (4, 4))
    original.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    gone = torch.zeros(4, 4, dtype=torch.bool)
    gone[1] = True
    reddish = torch.tensor([0.6, -0.8, -0.7])[:, None, None].expand(3, 4, 4)
    assert np.asarray(composite(original, reddish, gone, 0))[:2].tolist() == [[0] * 4, [1] * 4]


def test_a_change_outside_is_seen() -> None:
    original = image("RGB")
    other = original.copy()
    other.putpixel((0, 0), tuple((value + 9) % 256 for value in original.getpixel((0, 0))))  # type: ignore[union-attr]
    assert largest_change(original, other, hole()) >= 9


def test_the_feather_rises_inside_the_hole_only() -> None:
    share = feathered(hole(), 3)
    assert torch.equal(share > 0, hole())
    assert share[8, 3:8].tolist() == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    border = torch.zeros(6, 6, dtype=torch.bool)
    border[:3] = True
    # the image's border is no edge of the hole
    assert feathered(border, 2)[:, 0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 0, 0])


def test_a_composite_survives_its_file() -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        original = image(mode)
        buffer = io.BytesIO()
        composite(original, torch.zeros(3, H, W), hole(), 1).save(buffer, "PNG")
        read = Image.open(buffer)
        assert read.mode == mode
        assert largest_change(original, read, hole()) == 0


def test_drift_is_the_slow_difference_bridged_over_holes() -> None:
    known = torch.ones(1, 1, 40, 56)
    known[..., 8:32, 16:48] = 0
    constant = torch.tensor([0.1, -0.2, 0.3])[None, :, None, None].expand(1, 3, 40, 56)
    torch.testing.assert_close(drift(constant * known, known), constant, atol=1e-6, rtol=0)
    detail = torch.randn(1, 3, 40, 56) * 0.1
    slope = torch.linspace(0, 0.4, 56).expand(1, 3, 40, 56)
    fixed = without_drift(detail + slope, detail, torch.ones_like(known))
    assert (fixed - detail).abs().mean() < 0.02


def test_images_and_tensors_agree() -> None:
    original = image("RGB")
    again = composite(original, from_pil(original), hole(), 2)
    assert np.array_equal(np.asarray(again), np.asarray(original))
