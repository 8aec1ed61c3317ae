"""Framing: sizes, centring, padding, random crops and flips as functions of a seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.make_images import noise
from sfumato.data.transforms import Framing, flips


def ramp(height: int, width: int) -> Image.Image:
    """Red counts columns, green counts rows."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(["center", "random", "pad"]),
)
def test_any_image_fills_any_frame(image: tuple[int, int], frame: tuple[int, int], how: str) -> None:
    framing = Framing(frame, "pad", "center") if how == "pad" else Framing(frame, "crop", how)  # type: ignore[arg-type]
    prepared = framing.prepare(noise(0, *image))
    assert prepared.shape == (3, *framing.prepared_size(*image))
    assert framing.finish(prepared, None).shape == (3, *frame)
    assert framing.finish(prepared, 5).shape == (3, *frame)


def test_centre_crop_takes_the_middle() -> None:
    seen = Framing((8, 8)).prepare(ramp(8, 20))
    assert seen[0, 0].tolist() == list(range(6, 14))
    seen = Framing((8, 8)).prepare(ramp(20, 8))
    assert seen[1, :, 0].tolist() == list(range(6, 14))


def test_crop_keeps_the_aspect_and_covers() -> None:
    seen = Framing((8, 16)).prepare(Image.new("RGB", (64, 64), (10, 20, 30)))
    assert np.unique(seen.reshape(3, -1), axis=1).T.tolist() == [[10, 20, 30]]


def test_pad_centres_on_the_background() -> None:
    seen = Framing((8, 8), "pad", background=(1, 2, 3)).prepare(Image.new("RGB", (16, 8), (200, 200, 200)))
    assert seen[:, 0, 0].tolist() == [1, 2, 3]
    assert seen[:, -1, -1].tolist() == [1, 2, 3]
    assert (seen[:, 2:6] == 200).all()
    assert (seen[0, [1, 6]] == 1).all()


@pytest.mark.parametrize("filter", ["lanczos", "bicubic"])
def test_reduction_is_antialiased(filter: str) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    seen = Framing((8, 8), filter=filter).prepare(Image.fromarray(stripes))  # type: ignore[arg-type]
    assert abs(seen.astype(int) - 128).max() < 8


def test_random_crop_and_flip_are_functions_of_the_seed() -> None:
    framing = Framing((8, 8), crop="random", flip=True)
    prepared = framing.prepare(ramp(8, 20))
    seen = [framing.finish(prepared, seed) for seed in range(200)]
    assert all(np.array_equal(a, framing.finish(prepared, seed)) for seed, a in enumerate(seen))
    assert {int(a[0, 0].min()) for a in seen} == set(range(13))  # every place of the frame
    mirrored = [bool(a[0, 0, 0] > a[0, 0, 1]) for a in seen]
    assert mirrored == [flips(seed) for seed in range(200)]
    assert 70 < sum(mirrored) < 130


def test_without_a_seed_nothing_is_random() -> None:
    framing = Framing((8, 8), crop="random", flip=True)
    assert framing.finish(framing.prepare(ramp(8, 20)), None)[0, 0].tolist() == list(range(6, 14))


def test_flip_does_not_depend_on_the_crop() -> None:
    centre, random = Framing((4, 4), flip=True), Framing((4, 4), crop="random", flip=True)
    for seed in range(20):
        a = centre.finish(centre.prepare(ramp(4, 8)), seed)[0, 0]
        b = random.finish(random.prepare(ramp(4, 8)), seed)[0, 0]
        assert (a[0] > a[1]) == (b[0] > b[1])
