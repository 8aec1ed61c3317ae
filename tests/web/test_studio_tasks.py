"""Tasks in a browser: enlarging, extending by handles, interpolating, guidance by a colour and by projection."""

from typing import TYPE_CHECKING

from browsing import choose, drag, generate, give_image, more, pixels, settings

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Studio


def test_enlarge_an_image(page: "Page", studio: "Studio") -> None:
    choose(page, "small")
    give_image(page, studio, (12, 8))
    name = generate(page, 1)[0]
    assert pixels(studio.root / "kept" / "images" / name).shape == (16, 24, 3)
    assert settings(page, name)["task"] == "upscale"


def test_an_image_of_the_gallery_goes_to_a_model_that_can_enlarge_it(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator(".cell .open").first.click()
    page.get_by_text("Use as the input of").click()
    page.get_by_role("button", name="Upscale").click()
    page.wait_for_selector(".slot .filled")
    assert page.input_value("#model") == "small"


def test_pull_a_handle(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator("[data-task=outpaint]").click()
    give_image(page, studio)
    page.get_by_label("Pixels on the left").fill("0")
    page.get_by_label("Pixels on the right").fill("0")
    handle = page.get_by_label("Extend right")
    image = page.locator(".extent img").bounding_box()
    assert image is not None
    drag(page, handle, (0.5, 0.5), (0.5, 0.5), by=(image["width"] / 3, 0))  # 8 of its 24 pixels
    page.get_by_text("24 × 16 becomes 32 × 16").wait_for()
    drag(page, handle, (0.5, 0.5), (0.5, 0.5), by=(-image["width"], 0))
    page.get_by_text("24 × 16 becomes 24 × 16").wait_for()
    page.locator("button[type=submit]").click()
    page.get_by_text("Pull a side of the image outwards").wait_for()
    drag(page, handle, (0.5, 0.5), (0.5, 0.5), by=(image["width"] / 3, 0))
    name = generate(page, 1)[0]
    assert settings(page, name)["extend"] == [0, 0, 8, 0]


def test_interpolate_between_two_images_of_the_gallery(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator("[data-task=sample]").click()
    ends = []
    for prompt in ("a red apple", "two blue discs"):
        page.fill("[data-field=prompt] textarea", prompt)
        ends.append(settings(page, generate(page, 1)[0])["seeds"][0])
    page.locator("[data-task=interpolate]").click()
    page.get_by_label(f"From: seed {ends[0]}").click()
    page.get_by_role("group", name="Images of the gallery").get_by_label(f"seed {ends[1]}").click()
    page.get_by_label(f"From: seed {ends[1]}").click()  # and back again
    page.get_by_role("group", name="Images of the gallery").get_by_label(f"seed {ends[0]}").click()
    page.fill("[data-field=frames] input", "3")
    made = settings(page, generate(page, 3)[0])
    assert made["seeds"] == ends
    assert made["prompt"] == ["a red apple", "two blue discs"]


def test_a_colour_guides_an_image(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    more(page)
    page.fill("[data-field=seed] input", "3")
    name = generate(page, 1)[0]
    page.locator("[data-field=image_guidance] input[type=checkbox]").check()
    page.locator("[data-field=image_guidance] input[type=color]").fill("#00ff00")
    page.fill("[data-field=image_guidance_scale] input", "40")
    guided = generate(page, 1)[0]
    assert settings(page, guided)["image_guidance"] == ["#00ff00"]
    plain, green = (pixels(studio.root / "kept" / "images" / each).astype(int) for each in (name, guided))
    greenness = [image[..., 1].mean() - image[..., [0, 2]].mean() for image in (plain, green)]
    assert greenness[1] > greenness[0] + 5
    page.locator("[data-field=image_guidance] input[type=checkbox]").uncheck()


def test_projected_guidance_has_its_own_fields(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    more(page)
    page.locator("[data-field=projection] input[role=switch]").first.check()
    momentum = page.locator("[data-field=momentum] input")
    momentum.fill("-2")
    page.locator("button[type=submit]").click()
    page.locator(".submit .bad", has_text="give a number above -1 below 1").wait_for()
    momentum.fill("-0.5")
    page.locator("[data-field=limit] input").fill("4")
    made = settings(page, generate(page, 1)[0])
    assert made["projection"] == {"parallel": 0.0, "limit": 4.0, "momentum": -0.5}
    page.locator("[data-field=projection] input[role=switch]").first.uncheck()
