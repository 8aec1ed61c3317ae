"""The tasks on tiny untrained models: what must hold whatever the weights."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from sfumato.cli.forms import scale_of
from sfumato.conditioning.metadata import ConditioningMetadata, LayoutInput, LowResolutionInput, MapInput, MaskInput
from sfumato.engine.tiles import LEAST_MEMORY
from sfumato.errors import UserError
from sfumato.images import from_pil, pad_to_multiple, to_pil
from sfumato.model import LatentDiffusion
from sfumato.pipeline.request import SampleRequest
from sfumato.tasks import (
    Box,
    Extent,
    compose,
    compose_each,
    edit,
    edit_each,
    inpaint,
    inpaint_each,
    outpaint,
    paint,
    paint_each,
    task_options,
    upscale,
    upscale_each,
)
from sfumato.tasks.compositing import largest_change
from sfumato.tasks.editing import with_statistics
from sfumato.tasks.inpainting import hole_of, masked_fields, raw_latent
from sfumato.tasks.outpainting import extended
from sfumato.tasks.semantic import read_map
from tasks import conditioned

FAST = task_options(steps=2)
ODD = (19, 27)
"""(H, W) that no factor divides."""


def photo(size: tuple[int, int] = ODD, seed: int = 0) -> Image.Image:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return to_pil(torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")[0])


def square(size: tuple[int, int] = ODD) -> Image.Image:
    mask = np.zeros(size, np.uint8)
    mask[5:14, 6:21] = 255
    return Image.fromarray(mask)


def with_inputs(model: LatentDiffusion, **inputs: Any) -> LatentDiffusion:
    return replace(
        model, config=model.config.model_copy(update={"conditioning_metadata": ConditioningMetadata(**inputs)})
    )


def arrays(images: list[Image.Image]) -> list[list[int]]:
    return [np.asarray(image).tolist() for image in images]


def off(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two images, in 8-bit levels."""
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


# ---- inpaint and outpaint


@pytest.mark.parametrize("make", [conditioned.masked, conditioned.plain], ids=["trained for it", "known region"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L"])
def test_inpainting_leaves_the_outside_as_it_was(make: Callable[[], LatentDiffusion], mode: str) -> None:
    original = photo().convert(mode)
    (result,) = inpaint(make(), original, square(), options=FAST)
    assert (result.mode, result.size) == (original.mode, original.size)
    hole = hole_of(square(), original)
    assert largest_change(original, result, hole) == 0
    changed = np.asarray(result) != np.asarray(original)
    assert (changed if changed.ndim == 2 else changed.any(-1))[hole.numpy()].mean() > 0.5


def test_what_was_in_the_hole_does_not_matter() -> None:
    one = np.asarray(photo()).copy()
    other = one.copy()
    other[np.asarray(square()) > 0] = 200
    for model in (conditioned.masked(), conditioned.plain()):
        first, second = (
            inpaint(model, Image.fromarray(pixels), square(), feather=0, options=FAST)[0] for pixels in (one, other)
        )
        assert np.array_equal(np.asarray(first), np.asarray(second))


def test_masked_fields_follow_the_convention_of_the_model() -> None:
    image = pad_to_multiple(from_pil(photo())[None], 4)
    hole = torch.zeros(1, 1, *image.shape[2:])
    hole[..., 5:8, 6:9] = 1
    cells = torch.zeros(1, 1, image.shape[2] // 2, image.shape[3] // 2)
    cells[..., 2:4, 3:5] = 1  # any cell that a pixel of the hole touches
    original = conditioned.masked()
    found = masked_fields(original, image, hole, cells, LEAST_MEMORY)
    black = torch.where(hole > 0, -1.0, image)
    assert torch.equal(found["mask"], 2 * cells - 1)
    torch.testing.assert_close(found["masked_latent"], raw_latent(original, black, LEAST_MEMORY))
    stable = tiny.model(conditioned.STABLE, conditioned.NOT_DROPPED)
    found = masked_fields(stable, image, hole, cells, LEAST_MEMORY)
    grey = raw_latent(stable, torch.where(hole > 0, 0.0, image), LEAST_MEMORY)
    assert torch.equal(found["mask"], cells)
    torch.testing.assert_close(found["masked_latent"], stable.scaling.to_model(grey))
    ours = with_inputs(conditioned.masked(), mask=MaskInput(keep=0, hole=3, fill="grey"))
    assert torch.equal(masked_fields(ours, image, hole, cells, LEAST_MEMORY)["mask"], 3 * cells)


def test_of_a_large_image_only_the_surroundings_of_the_hole_are_looked_at() -> None:
    model = conditioned.masked()
    assert model.second is not None
    sizes: set[tuple[int, int]] = set()
    model.second.denoiser.register_forward_pre_hook(lambda _, given: sizes.add(tuple(given[0].shape[2:])))
    original, mask = photo((150, 201)), np.zeros((150, 201), np.uint8)
    mask[60:70, 190:201] = 255
    (result,) = inpaint(model, original, Image.fromarray(mask), options=FAST)
    # the training size, 16x24, around 10x11: half of it on each side but where the image ends, in latent cells
    assert sizes == {(14, 12)}
    hole = torch.from_numpy(mask > 0)
    assert largest_change(original, result, hole) == 0
    assert (np.asarray(result) != np.asarray(original)).any(-1)[mask > 0].mean() > 0.5


def test_jumps_take_more_steps() -> None:
    seen: list[int] = []
    options = replace(FAST, callback=lambda step: seen.append(step.total))
    inpaint(conditioned.plain(), photo(), square(), jumps=(1, 2), options=options)
    assert len(seen) == seen[0] == 6, "both steps twice, and each time up again"
    with pytest.raises(UserError, match="jumps are for models that were not trained to inpaint"):
        inpaint(conditioned.masked(), photo(), square(), jumps=(1, 2), options=FAST)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_outpainting_keeps_the_image(mode: str) -> None:
    original = photo().convert(mode)
    extent = Extent(left=6, top=0, right=3, bottom=5)
    (result,) = outpaint(conditioned.masked(), original, extent, options=FAST)
    assert result.size == (ODD[1] + 9, ODD[0] + 5)
    canvas, new = extended(original, extent)
    assert result.mode == canvas.mode == {"P": "RGB"}.get(mode, mode)
    assert largest_change(canvas, result, new) == 0
    kept = result.crop((6, 0, 6 + ODD[1], ODD[0]))
    assert np.array_equal(np.asarray(kept), np.asarray(original.convert(kept.mode)))
    with pytest.raises(UserError, match=r"extend is 0,0,0,0: give the pixels"):
        outpaint(conditioned.masked(), original, Extent(), options=FAST)


# ---- edit


def test_strength_0_is_the_reconstruction_and_1_a_sample() -> None:
    model, image = tiny.model(), photo((16, 24))
    (kept,) = edit(model, image, "a red apple", strength=0, options=FAST)
    whole = model.reconstruct(from_pil(image)[None])
    assert off(kept, to_pil(whole[0])) <= 1
    options = replace(FAST, seed=5, count=2)
    fresh = edit(model, image, "a red apple", strength=1, options=options)
    sampled = model.sample("a red apple", steps=2, seed=5, count=2)
    assert all(off(one, other) <= 1 for one, other in zip(fresh, sampled, strict=True))
    assert off(fresh[0], fresh[1]) > 5


def test_a_little_strength_stays_nearer_than_much() -> None:
    model, image = conditioned.plain(), photo()
    near, far = (
        np.asarray(edit(model, image, strength=s, options=task_options(steps=10))[0]).astype(float) for s in (0.1, 1)
    )
    kept = np.asarray(edit(model, image, strength=0, options=FAST)[0])
    assert near.shape == (*ODD, 3)
    assert np.abs(near - kept).mean() < np.abs(far - kept).mean()


def test_a_style_is_the_other_latents_mean_and_spread() -> None:
    latent, other = torch.randn(1, 3, 6, 7), 3 + 2 * torch.randn(1, 3, 9, 4)
    moved = with_statistics(latent, other)
    torch.testing.assert_close(moved.mean((2, 3)), other.mean((2, 3)))
    torch.testing.assert_close(moved.std((2, 3)), other.std((2, 3)))
    torch.testing.assert_close(with_statistics(latent, other, 0.0), latent)
    model = conditioned.plain()
    plain, styled = (edit(model, photo(), strength=0, style=style) for style in (None, photo((8, 12), seed=4)))
    assert arrays(plain) != arrays(styled)


# ---- upscale


def test_upscaling_any_size_by_the_models_factor() -> None:
    small = photo((11, 7))
    (result,) = upscale(conditioned.enlarging(), small, options=FAST)
    assert (result.mode, result.size) == ("RGB", (14, 22))
    other = with_inputs(conditioned.enlarging(), low_resolution=LowResolutionInput(factor=4, degradation="bicubic"))
    assert upscale(other, small, options=FAST)[0].size == (28, 44)
    grey = small.convert("LA")
    grey.putalpha(Image.new("L", grey.size, 77))
    (result,) = upscale(conditioned.enlarging(), grey, options=FAST)
    assert (result.mode, result.getchannel("A").getextrema()) == ("LA", (77, 77))


def test_colours_do_not_drift() -> None:
    """An untrained model samples anything: its colours are held to the small image's all the same."""
    small = photo((16, 24))
    wanted = np.asarray(small, np.float64).mean((0, 1))

    def moved(keep: bool) -> float:
        (result,) = upscale(conditioned.enlarging(), small, keep_colours=keep, options=FAST)
        return float(np.abs(np.asarray(result, np.float64).mean((0, 1)) - wanted).max())

    assert moved(True) < 0.35 * moved(False)


# ---- paint and compose


def test_maps_condition_and_any_size_is_kept() -> None:
    model = conditioned.semantic()
    ids = torch.zeros(*ODD, dtype=torch.long)
    ids[:, 9:] = 3
    one, two = paint(model, ids, options=FAST), paint(model, 4 - ids, options=FAST)
    assert one[0].size == (ODD[1], ODD[0])
    assert arrays(one) != arrays(two)
    assert arrays(paint(model, Image.fromarray(ids.numpy().astype(np.uint8)), options=FAST)) == arrays(one)
    void = torch.full_like(ids, 255)
    assert arrays(paint(model, void, options=FAST)) != arrays(one)


def test_maps_are_read_as_ids_palettes_or_colours() -> None:
    palette = ((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200), (9, 9, 9))
    model = with_inputs(conditioned.semantic(), map=MapInput(names=tuple("abcde"), palette=palette, void=255))
    ids = np.array([[0, 1, 2], [3, 1, 255]], np.uint8)
    grey = Image.fromarray(ids)
    indexed = Image.fromarray(np.where(ids == 255, 4, ids).astype(np.uint8)).convert("P")
    indexed.putdata(np.where(ids == 255, 4, ids).flatten().tolist())
    coloured = Image.fromarray(np.array([*palette, *[(0, 0, 0)] * 251], np.uint8)[ids])
    assert read_map(model, grey).tolist() == ids.tolist()
    assert read_map(model, coloured).tolist() == ids.tolist()
    indexed.putpalette([value for colour in palette for value in colour])
    assert read_map(model, indexed).tolist() == [[0, 1, 2], [3, 1, 4]]
    # the same colours in another order are the same map
    reordered = indexed.remap_palette([4, 3, 2, 1, 0])
    assert read_map(model, reordered).tolist() == [[0, 1, 2], [3, 1, 4]]
    coloured.putpixel((0, 0), (1, 2, 3))
    with pytest.raises(UserError, match="the colour #010203 at row 0, column 0, which is not a class of this model"):
        read_map(model, coloured)
    with pytest.raises(UserError, match="records no colours of classes"):
        read_map(conditioned.semantic(), coloured)


def test_boxes_condition_and_names_are_known() -> None:
    model = with_inputs(conditioned.layout(), layout=LayoutInput(names=("cat", "dog", "sun", "sea")))
    boxes = [Box("dog", (0.1, 0.2, 0.5, 0.5)), Box(3, (0.5, 0.0, 0.5, 1.0))]
    one = compose(model, boxes, options=FAST)
    assert one[0].size == (24, 16)
    assert arrays(one) == arrays(compose(model, [Box(1, boxes[0].box), boxes[1]], options=FAST))
    assert arrays(one) != arrays(compose(model, boxes[:1], options=FAST))
    assert compose(model, boxes, size=(18, 30), options=FAST)[0].size == (30, 18)
    with pytest.raises(UserError, match=r"box 1 has the category 'dgo', which is not one of cat, dog.*mean 'dog'"):
        compose(model, [Box("dgo", boxes[0].box)], options=FAST)
    with pytest.raises(UserError, match=r"records no names .*: give its number, 0 to 3"):
        compose(conditioned.layout(), boxes, options=FAST)


# ---- canvases


def test_large_canvases_go_in_windows_that_see_their_part() -> None:
    """A map on a wide canvas: with windows a network call is never larger than one, and the map still conditions it."""
    model = conditioned.semantic()
    assert model.second is not None
    ids = torch.zeros(32, 96, dtype=torch.long)
    ids[:, 48:] = 2
    sizes: set[tuple[int, int]] = set()
    handle = model.second.denoiser.register_forward_pre_hook(lambda _, given: sizes.add(tuple(given[0].shape[2:])))
    (whole,) = paint(model, ids, options=replace(FAST, window=0))
    assert sizes == {(16, 48)}
    sizes.clear()
    (auto,) = paint(model, ids, options=FAST)
    assert sizes == {(8, 12)}
    handle.remove()
    assert auto.size == whole.size == (96, 32)
    with pytest.raises(UserError, match="window is 6 pixels: give a multiple of 4"):
        paint(model, ids, options=replace(FAST, window=6))


def test_windows_of_a_layout_see_it_through_their_crop() -> None:
    model = conditioned.layout()
    seen: list[Tensor] = []
    assert model.second is not None
    assert model.second.conditioner is not None
    transformer = model.second.conditioner.transformer
    assert isinstance(transformer, torch.nn.Module)
    transformer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, -2:]))
    compose(model, [Box(1, (0.0, 0.0, 1.0, 1.0))], size=(32, 48), options=replace(FAST, window=16))
    # the crop's two tokens: as many different places as windows, beside the whole of the first look
    assert len({tuple(tokens.tolist()) for tokens in seen}) > 4


def test_sampling_in_windows_that_cover_all_is_plain_sampling() -> None:
    model = conditioned.plain()
    plain, covered = (model.sample(steps=2, size=(16, 24), window=window, as_tensor=True) for window in (0, 24))
    assert torch.equal(plain, covered)
    large = model.sample(steps=2, size=(32, 48), window=16, memory=LEAST_MEMORY, as_tensor=True)
    assert large.shape == (1, 3, 32, 48)


# ---- guidance for each part


ALL_DROPPED = "diffusion.part_dropout={mask: 0.1, masked_image: 0.1, tokens: 0.1}"


def test_equal_scales_of_all_parts_are_one_scale() -> None:
    """The differences between the conditions of Brooks et al. (2023), eq. 3, add up to that of guidance."""
    model = tiny.model(conditioned.STABLE, ALL_DROPPED)

    def sampled(guidance: Any) -> Image.Image:
        return inpaint(model, photo(), square(), "a red ring", options=replace(FAST, guidance=guidance))[0]

    together = sampled({"tokens": 4.0, "mask": 4.0, "masked_image": 4.0})
    assert off(together, sampled(4.0)) <= 1
    assert off(sampled({"tokens": 1.0}), sampled(1.0)) <= 1, "parts that are not named are followed as they are"
    assert off(sampled({"tokens": 40.0}), sampled({"mask": 40.0})) > 1
    assert off(sampled({"tokens": 40.0}), sampled(1.0)) > 1


def test_scales_of_parts_that_a_model_does_not_know() -> None:
    def refused(model: LatentDiffusion, guidance: dict[str, float], message: str, **options: Any) -> None:
        with pytest.raises(UserError, match=message):
            inpaint(model, photo(), square(), options=replace(FAST, guidance=guidance), **options)

    known = tiny.model(conditioned.STABLE, "diffusion.part_dropout={tokens: 0.1}")
    refused(known, {"token": 3}, "'token' is not one of the parts mask, masked_image, tokens")
    refused(known, {"mask": 3}, r"without dropping 'mask' alone \(train.part_dropout has tokens\)")
    refused(known, {"tokens": 3}, "not from a negative prompt", prompt="a", negative="b")
    refused(known, {"tokens": math.nan}, "guidance is nan: give a number")
    refused(known, {}, "names no parts")
    refused(conditioned.plain(), {"text": 3}, "this one has none: give one number")


def test_guidance_as_it_is_typed() -> None:
    assert scale_of("--guidance", "3") == 3.0
    assert scale_of("--guidance", "text=3, mask=1.5") == {"text": 3.0, "mask": 1.5}
    for text in ("", "a", "text", "text=", "=3", "3,4", "text=3,text=4", "text=3,4"):
        with pytest.raises(UserError, match="neither a number such as 3 nor scales of parts"):
            scale_of("--guidance", text)


# ---- many at once


def test_many_at_once_are_those_of_one_by_one() -> None:
    """Of every task: a batch of images is, up to rounding, the images of the same seeds alone."""
    photos = [photo(seed=seed) for seed in range(3)]
    ids = [torch.full(ODD, value, dtype=torch.long) for value in range(3)]
    boxes = [[Box(k, (0.1, 0.1, 0.5, 0.2 + 0.1 * k))] * (k + 1) for k in range(3)]
    texts = list(tiny.TEXTS)
    stable = tiny.model(conditioned.STABLE)
    small, semantic, layout, text = conditioned.enlarging(), conditioned.semantic(), conditioned.layout(), tiny.model()
    masks = [square()] * 3

    def all_of(options: SampleRequest, k: slice) -> list[list[Image.Image]]:
        return [
            paint_each(semantic, ids[k], options=options),
            compose_each(layout, boxes[k], options=options),
            upscale_each(small, photos[k], options=options),
            inpaint_each(stable, photos[k], masks[k], texts[k], options=options),
            inpaint_each(text, photos[k], masks[k], texts[k], options=options),
            edit_each(text, photos[k], texts[k], strength=0.5, options=options),
            edit_each(text, photos[k], strength=0, options=options),
        ]

    together = all_of(replace(FAST, seed=7, batch=3), slice(0, 3))
    for number in range(3):
        alone = all_of(replace(FAST, seed=7 + number), slice(number, number + 1))
        for batch, single in zip(together, alone, strict=True):
            assert off(batch[number], single[0]) <= 1


def test_canvases_of_different_sizes_do_not_share_a_batch() -> None:
    model = conditioned.enlarging()
    assert model.second is not None
    batches: list[int] = []
    model.second.denoiser.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
    shown = [photo((8, 12)), photo((8, 12)), photo((12, 8)), photo((8, 12))]
    made = upscale_each(model, shown, options=replace(FAST, steps=1, batch=3))
    assert [image.size for image in made] == [(24, 16), (24, 16), (16, 24), (24, 16)]
    assert batches == [2, 1, 1]
    upscale(model, shown[0], options=replace(FAST, steps=1, count=5, batch=4))
    assert batches[3:] == [4, 1]
    with pytest.raises(UserError, match="prompts: 2 for 4 images; give a list with one for each"):
        upscale_each(model, shown, ["a", "b"])
    with pytest.raises(UserError, match="1 mask for 4 images: give one for each"):
        inpaint_each(conditioned.plain(), shown, [square()])
    with pytest.raises(UserError, match="batch is 0: give a whole number from 1"):
        upscale(model, shown[0], options=replace(FAST, batch=0))


def test_a_part_that_was_dropped_alone_can_be_left_out() -> None:
    known = tiny.model(conditioned.STABLE, conditioned.NOT_DROPPED, "diffusion.part_dropout={tokens: 0.1}")
    (without,) = inpaint(known, photo(), square(), options=FAST)
    (empty,) = inpaint(known, photo(), square(), "", options=FAST)
    assert arrays([without]) == arrays([empty])
    (prompted,) = inpaint(known, photo(), square(), "a red apple", options=FAST)
    assert arrays([without]) != arrays([prompted])
    with pytest.raises(UserError, match="give a prompt"):
        inpaint(tiny.model(conditioned.STABLE, conditioned.NOT_DROPPED), photo(), square(), options=FAST)
