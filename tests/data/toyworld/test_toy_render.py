"""Images, maps and boxes agree with each other and with the scene."""

import numpy as np
import pytest
import torch

from sfumato.data.toyworld.render import MAP_NAMES, background, boxes, render, semantic_maps
from sfumato.data.toyworld.scene import CLASSES, Scene, SceneObject, scene
from sfumato.data.toyworld.shapes import HALF_EXTENT, distance
from sfumato.data.toyworld.vocabulary import BACKGROUNDS, COLOURS, SHAPES
from sfumato.errors import UserError

SCENES = [scene(5, index) for index in range(120)]


@pytest.mark.parametrize("size", [(64, 64), (48, 72), (96, 40)])
def test_images_maps_and_boxes_agree(size: tuple[int, int]) -> None:
    height, width = size
    images, maps = render(SCENES, size), semantic_maps(SCENES, size)
    assert images.shape == (120, 3, height, width)
    assert images.dtype == maps.dtype == torch.uint8
    for one, image, semantic_map in zip(SCENES, images, maps, strict=True):
        empty = background(one.background, height, width)
        changed = np.abs(image.numpy() - empty).max(axis=0) > 12
        # The map covers what was painted, but for the anti-aliased pixels of the outline.
        painted, mapped = torch.from_numpy(changed), semantic_map > 0
        assert (painted & mapped).sum() / mapped.sum() > 0.97
        outline = torch.nn.functional.max_pool2d(mapped[None, None].float(), 3, 1, 1)[0, 0] > 0
        assert not (painted & ~outline).any()
        expected = {0} | {MAP_NAMES.index(item.shape) for item in one.objects}
        assert set(semantic_map.unique().tolist()) == expected
        covered = torch.zeros(size, dtype=torch.bool)
        for (name, x0, y0, x1, y1), item in zip(boxes(one, size), one.objects, strict=True):
            assert MAP_NAMES[name] == item.shape
            rows = slice(max(round(y0 * height) - 1, 0), round(y1 * height) + 1)
            columns = slice(max(round(x0 * width) - 1, 0), round(x1 * width) + 1)
            covered[rows, columns] = True
            ys, xs = torch.nonzero(semantic_map[rows, columns] == name, as_tuple=True)
            assert abs(len(ys.unique()) - (y1 - y0) * height) <= 2
            assert abs(len(xs.unique()) - (x1 - x0) * width) <= 2
        assert not (mapped & ~covered).any()


def test_a_batch_renders_what_each_scene_alone_renders() -> None:
    together = render(SCENES, 64)
    assert all(torch.equal(together[i], render([SCENES[i]], 64)[0]) for i in range(0, 120, 7))


@pytest.mark.parametrize("shape", SHAPES)
def test_extents_bound_the_shape(shape: str) -> None:
    grid = np.linspace(-1.25, 1.25, 501, dtype=np.float32)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    inside = distance(shape, x, y) < 0
    assert (np.abs(x[inside]).max(), np.abs(y[inside]).max()) == pytest.approx(HALF_EXTENT[shape], abs=0.012)
    assert (-x[inside].min(), -y[inside].min()) == pytest.approx(HALF_EXTENT[shape], abs=0.012)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("ring", "cross")])
def test_distances_are_distances(shape: str) -> None:
    """The gradient has length one almost everywhere, so anti-aliasing is one pixel wide."""
    grid = np.linspace(-1.2, 1.2, 481)
    y, x = np.meshgrid(grid, grid, indexing="ij")
    slope = np.hypot(*np.gradient(distance(shape, x, y), grid, grid))
    assert np.median(slope) == pytest.approx(1, abs=0.01)
    assert (np.abs(slope - 1) < 0.05).mean() > 0.9


def test_the_palette_stands_apart() -> None:
    """Colours from each other, and from every background they are rendered on."""
    bases = np.array([base for base, _ in COLOURS.values()], float)
    apart = np.linalg.norm(bases[:, None] - bases[None], axis=-1)
    assert apart[~np.eye(len(bases), dtype=bool)].min() > 75
    for one in SCENES:
        for item in one.objects:
            for tone in BACKGROUNDS[one.background]:
                assert np.linalg.norm(np.subtract(COLOURS[item.colour][0], tone)) > 60


def test_a_plain_disc_has_its_colour_and_area() -> None:
    disc = Scene("single", (SceneObject("circle", "blue", "large", "plain", 0.5, 0.5, 0.4),), "white")
    image = render([disc], 128)[0].float()
    inside = semantic_maps([disc], 128)[0] > 0
    assert inside.float().mean().item() == pytest.approx(np.pi * (0.2 * 0.96) ** 2, rel=0.02)
    assert (image[:, inside].mean(1) - torch.tensor(COLOURS["blue"][0])).abs().max() < 6
    assert (image[:, 0, 0] - torch.tensor(BACKGROUNDS["white"][0])).abs().max() < 1


def test_the_class_is_texture_and_shape_of_the_first_object() -> None:
    for one in SCENES:
        assert CLASSES[one.label] == f"{one.objects[0].texture} {one.objects[0].shape}"


def test_too_small_a_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"size \(16, 64\) is too small"):
        render(SCENES[:1], (16, 64))
