"""The reader is right on real scenes, holds up under the damage of a decoder, and believes nothing that is not so."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from sfumato.data.toyworld.caption import caption
from sfumato.data.toyworld.components import label
from sfumato.data.toyworld.facts import Fact, facts, prompts, score, tally
from sfumato.data.toyworld.reader import VOID, Reading, read, read_batch, read_maps
from sfumato.data.toyworld.render import boxes, render, semantic_maps
from sfumato.data.toyworld.scene import Scene, SceneObject, scene
from sfumato.data.toyworld.vocabulary import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

SCENES = [scene(11, index, "held-out") for index in range(200)]
IMAGES = render(SCENES, 64)


def through_pillow(change: Callable[[Image.Image], Image.Image]) -> Tensor:
    images = [np.array(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in IMAGES]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=60)
    return Image.open(buffer)


def noisy() -> Tensor:
    noise = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(0)) * 8
    return (IMAGES + noise).round().clamp(0, 255).to(torch.uint8)


def shifted() -> Tensor:
    return (IMAGES * 0.95 + torch.tensor([10.0, -6.0, 8.0])[:, None, None]).clamp(0, 255).to(torch.uint8)


def rates(readings: list[Reading]) -> dict[str, float]:
    return tally(score(facts(one), reading) for one, reading in zip(SCENES, readings, strict=True))


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    return read_batch(IMAGES)


def test_clean_scenes_are_read_right(readings: list[Reading]) -> None:
    found = rates(readings)
    assert min(found.values()) >= 0.99, found


@pytest.mark.parametrize(
    ("damage", "every_kind"),
    [
        (lambda: through_pillow(lambda image: image.filter(ImageFilter.GaussianBlur(0.7))), 0.98),
        (noisy, 0.98),
        (shifted, 0.98),
        (lambda: through_pillow(jpeg), 0.93),
    ],
    ids=["blur", "noise", "colour shift", "jpeg"],
)
def test_damaged_scenes_are_read_right(damage: Callable[[], Tensor], every_kind: float) -> None:
    found = rates(read_batch(damage()))
    assert found["facts"] >= 0.98, found
    assert min(rate for kind, rate in found.items() if kind != "prompts") >= every_kind, found


@pytest.mark.parametrize("size", [(48, 80), (128, 128), (32, 32)])
def test_other_sizes_are_read_right(size: tuple[int, int]) -> None:
    found = [
        score(facts(one), reading)
        for one, reading in zip(SCENES[:60], read_batch(render(SCENES[:60], size)), strict=True)
    ]
    assert tally(found)["facts"] >= 0.985


def test_another_scene_s_image_scores_near_chance(readings: list[Reading]) -> None:
    others = tally(score(facts(caption(one)), readings[i - 1]) for i, one in enumerate(SCENES))
    assert others["prompts"] == 0
    assert others["facts"] < 0.35
    # Chance: one in eight shapes and colours (a little more for pairs, whose order is free), one in seven backgrounds.
    assert max(others["shape"], others["colour"], others["background"]) < 0.22
    assert others["relation"] < 0.4


def test_one_wrong_word_is_noticed(readings: list[Reading]) -> None:
    """Only the changed fact fails: the reader neither forgives it nor loses the others."""
    kinds = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES), "texture": TEXTURES}
    kinds |= {"background": tuple(BACKGROUNDS)}
    missed = total = 0
    for one, reading in zip(SCENES, readings, strict=True):
        if one.arrangement != "single" and one.arrangement != "group":
            continue
        true = facts(one)
        for place, fact in enumerate(true):
            if fact.kind not in kinds:
                continue
            words = kinds[fact.kind]
            wrong = replace(fact, value=words[(words.index(str(fact.value)) + 1) % len(words)])
            held = score([*true[:place], wrong, *true[place + 1 :]], reading).holds
            total += 1
            missed += held != tuple(index != place for index in range(len(true)))
    assert total > 300
    assert missed / total <= 0.01


def test_noise_and_emptiness_show_nothing() -> None:
    noise = torch.randint(0, 256, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for reading in read_batch(noise):
        assert all(seen.shape == "unclear" or seen.fit < 0.8 for seen in reading.objects)
        assert score([Fact("shape", "circle", 0), Fact("background", "grey")], reading).fraction < 1
    white = torch.full((3, 64, 64), 250, dtype=torch.uint8)
    assert read(white) == Reading((), "white")


def test_places_and_boxes_are_found(readings: list[Reading]) -> None:
    for one, reading in zip(SCENES, readings, strict=True):
        assert len(reading.objects) == len(one.objects)
        for item, (_, *corners) in zip(one.objects, boxes(one, 64), strict=True):
            seen = min(reading.objects, key=lambda s: abs(s.x - item.x) + abs(s.y - item.y))
            assert max(abs(seen.x - item.x), abs(seen.y - item.y)) < 1.2 / 64
            assert seen.diameter == pytest.approx(item.diameter, rel=0.12)
            assert np.abs(np.subtract(seen.box, corners)).max() < 2 / 64


@pytest.mark.parametrize("texture", ["striped", "dotted"])
@pytest.mark.parametrize("shift", [(0, 3), (2, 0), (3, 5)])
def test_a_pattern_counts_in_any_phase(texture: str, shift: tuple[int, int]) -> None:
    square = Scene("single", (SceneObject("square", "blue", "large", texture, 0.5, 0.5, 0.7),), "white")
    image = render([square], 64)[0]
    rows, columns = slice(22 - shift[0], 43 - shift[0]), slice(22 - shift[1], 43 - shift[1])
    image[:, 22:43, 22:43] = render([square], 64)[0][:, rows, columns]
    assert read(image).objects[0].texture == texture


def test_floats_and_bytes_read_alike(readings: list[Reading]) -> None:
    floats = IMAGES[:20].float() / 127.5 - 1
    for one, bytes_, floats_ in zip(SCENES, readings, read_batch(floats), strict=False):
        assert score(facts(one), bytes_).holds == score(facts(one), floats_).holds


def test_a_batch_reads_what_each_image_alone_reads(readings: list[Reading]) -> None:
    assert [read(image) for image in IMAGES[:10]] == readings[:10]


def test_a_group_must_agree_and_a_pair_may_swap(readings: list[Reading]) -> None:
    group = next(i for i, one in enumerate(SCENES) if one.arrangement == "group")
    reading, stated = readings[group], facts(SCENES[group])
    spoilt = Reading((replace(reading.objects[0], colour="unclear"), *reading.objects[1:]), reading.background)
    lost = [fact.kind for fact, true in zip(stated, score(stated, spoilt).holds, strict=True) if not true]
    assert lost == ["colour"]
    pair = next(i for i, one in enumerate(SCENES) if one.arrangement == "pair")
    reading = readings[pair]
    assert score(facts(SCENES[pair]), Reading(reading.objects[::-1], reading.background)).perfect
    alone = score(facts(SCENES[pair]), Reading(reading.objects[:1], reading.background))
    assert not alone.perfect
    assert alone.fraction < 0.7


def test_prompts_are_captions_with_their_facts() -> None:
    given = prompts(30, "held-out", seed=2)
    assert [prompt.caption for prompt in given] == [caption(scene(2, i, "held-out")) for i in range(30)]
    assert all(prompt.facts == facts(prompt.caption) for prompt in given)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\).*\(1, 1, 64, 64\)"):
        read(torch.zeros(1, 64, 64))


def test_components_agree_with_flood_fill() -> None:
    masks = np.random.default_rng(0).random((5, 23, 31)) < 0.45
    masks[0], masks[1] = True, False
    labels = label(masks)
    assert ((labels > 0) == masks).all()
    for mask, found in zip(masks, labels, strict=True):
        seen = np.zeros_like(mask)
        for start in zip(*np.nonzero(mask), strict=True):
            if seen[start]:
                continue
            stack, members = [start], []
            seen[start] = True
            while stack:
                y, x = stack.pop()
                members.append((y, x))
                for i in range(max(y - 1, 0), min(y + 2, mask.shape[0])):
                    for j in range(max(x - 1, 0), min(x + 2, mask.shape[1])):
                        if mask[i, j] and not seen[i, j]:
                            seen[i, j] = True
                            stack.append((i, j))
            here = found[start]
            assert {found[member] for member in members} == {here}
            assert (found == here).sum() == len(members)
    assert not (set(labels[0].ravel()) & set(labels[2].ravel()) - {0})


@pytest.mark.parametrize("size", [(48, 80), (128, 144)])
def test_maps_say_what_each_pixel_shows(size: tuple[int, int]) -> None:
    scenes = [scene(3, index) for index in range(12)]
    maps = semantic_maps(scenes, size)
    right = read_maps(render(scenes, size)) == maps
    assert right.float().mean() > 0.98
    assert right[maps > 0].float().mean() > 0.93


def test_pixels_of_no_shape_have_no_class() -> None:
    image = torch.full((1, 3, 64, 64), 250, dtype=torch.uint8)
    red = torch.tensor([219, 50, 54], dtype=torch.uint8)[:, None, None]
    image[0, :, 20:26, 4:60] = red  # a bar is none of the shapes
    image[0, :, 50:53, 50:53] = red  # too small to be an object
    found = read_maps(image)
    assert found.shape == (1, 64, 64)
    assert (found[0, 21:25, 5:59] == VOID).all()
    assert (found[0, 50:53, 50:53] == VOID).all()
    assert (found == 0).sum() > 64 * 64 - 8 * 60 - 7 * 7
    assert set(found.unique().tolist()) == {0, VOID}
