"""Masks: how much of an image each kind covers, where, and that they are functions of their number."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runs import Images
from sfumato.data.conditions.config import HOLES, HoleKind, MaskConfig
from sfumato.data.conditions.holes import LEAST, MOST, cells_of, random_hole
from sfumato.data.conditions.masked import Holes, MaskedImages
from sfumato.errors import UserError
from sfumato.rng import numpy_generator

COVERAGE: dict[HoleKind, tuple[float, float]] = {
    "box": (0.10, 0.19),
    "strokes": (0.07, 0.15),
    "thin": (0.03, 0.10),
    "medium": (0.11, 0.22),
    "thick": (0.2, 0.35),
}


@pytest.mark.parametrize("kind", HOLES)
def test_a_kind_covers_its_share_at_any_size(kind: HoleKind) -> None:
    for size in ((64, 64), (96, 160)):
        holes = np.stack([random_hole((kind,), size, numpy_generator(i)) for i in range(80)])
        shares = holes.mean((1, 2))
        assert LEAST <= shares.min() <= shares.max() <= MOST
        assert COVERAGE[kind][0] < shares.mean() < COVERAGE[kind][1], shares.mean()
        quarters = holes.reshape(80, 2, size[0] // 2, 2, size[1] // 2).mean((0, 2, 4))
        assert quarters.min() > 0.4 * quarters.max(), "holes should lie anywhere"


def test_a_box_is_a_box_and_strokes_are_not() -> None:
    def full(hole: np.ndarray) -> bool:
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        return bool(hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())

    assert all(full(random_hole(("box",), (48, 64), numpy_generator(i))) for i in range(20))
    assert not any(full(random_hole(("thin",), (48, 64), numpy_generator(i))) for i in range(20))


def test_a_cell_is_a_hole_where_any_of_its_pixels_is() -> None:
    hole = numpy_generator(0).random((24, 32)) < 0.05
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(hole).float()[None, None], 4)[0, 0]
    assert np.array_equal(cells_of(hole, 4), pooled.numpy() > 0)


def test_every_image_has_its_own_masks() -> None:
    images = Images(count=3, size=32)
    masked = MaskedImages(images, Holes(MaskConfig(variants=4, fill="grey"), (32, 32)), 4)
    assert len(masked) == 12
    masks = [masked[i].fields["mask"] for i in range(12)]
    assert len({mask.numpy().tobytes() for mask in masks}) > 9
    for i in range(12):
        whole, holed = images[i // 4].image, masked[i].image
        cells = masks[i].repeat_interleave(4, 1).repeat_interleave(4, 2).expand(3, -1, -1) > 0
        assert torch.equal(whole[~cells], holed[~cells]), "nothing changes outside the latent's hole"
        assert bool(((holed == whole) | (holed == 128)).all())
        assert torch.equal(masked[i].image, holed)
    other = MaskedImages(images, Holes(MaskConfig(variants=4, kinds=("box",)), (32, 32)), 4)
    assert other.fingerprint() != masked.fingerprint()


def test_masks_of_a_folder(tmp_path: Path) -> None:
    given = np.zeros((10, 20), np.uint8)
    given[2:5, 10:18] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(given).save(tmp_path / "masks" / "a.png")
    holes = Holes(MaskConfig(folder="masks"), (20, 40), tmp_path)
    assert np.array_equal(holes(3), np.kron(given > 0, np.ones((2, 2), bool)))
    Image.fromarray(np.zeros((10, 20), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match=r"a\.png has no hole: paint white"):
        Holes(MaskConfig(folder="masks"), (20, 44), tmp_path)(0)
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(UserError, match=r"the folder of masks .*masks holds no images"):
        Holes(MaskConfig(folder="masks"), (20, 40), tmp_path)
