"""Making images in a browser: sampling, drawing, the gallery, settings from a PNG."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from browsing import choose, drag, drop, generate, give_image, pixels, settings

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Studio

FORMING = ".cell.forming"


def test_sample_images_and_find_them_after_a_reload(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.fill("[data-field=prompt] textarea", "a red apple")
    page.fill("[data-field=count] input", "3")
    made = generate(page, 3)
    assert page.get_by_role("button", name="Image: a red apple").count() == 3
    page.reload()
    page.wait_for_selector(".cell img")
    assert [cell.get_attribute("data-done") for cell in page.locator(".cell").all()[:3]] == made
    assert page.input_value("[data-field=prompt] textarea") == "a red apple"


def test_a_reload_in_the_middle_finds_the_job_again(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.fill("[data-field=steps] input", "900")
    kept = sorted((studio.root / "kept" / "images").glob("*.png"))
    page.locator("button[type=submit]").click()
    page.wait_for_function("() => document.querySelector('.cell.forming .state span')?.textContent.includes('of 900')")
    page.reload()
    page.wait_for_selector(FORMING)
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector(FORMING, state="detached")
    assert sorted((studio.root / "kept" / "images").glob("*.png")) == kept, "what is cancelled leaves no image"
    page.fill("[data-field=steps] input", "")


def test_draw_a_hole_and_fill_it(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator("[data-task=inpaint]").click()
    give_image(page, studio)
    page.locator("button[type=submit]").click()
    page.get_by_text("Paint a hole over the part").wait_for()  # nothing is sent without a hole
    canvas = page.locator(".sheet canvas")
    drag(page, canvas, (0.1, 0.5), (0.4, 0.5))
    assert "%" in page.locator(".toolbar .status").inner_text()
    page.get_by_role("button", name="Undo").click()
    assert "paint over" in page.locator(".toolbar .status").inner_text()
    page.get_by_role("button", name="Redo").click()
    name = generate(page, 1)[0]
    before, after = pixels(studio.root / "input.png"), pixels(studio.root / "kept" / "images" / name)
    right = before[:, 20:] == after[:, 20:]
    assert right.all()
    assert (before[5:12, :6] != after[5:12, :6]).any()


def test_paint_a_label_map(page: "Page", studio: "Studio") -> None:
    choose(page, "map")
    canvas = page.locator(".sheet canvas")
    page.get_by_role("button", name="sand").click()
    drag(page, canvas, (0.1, 0.8), (0.9, 0.8))
    page.get_by_role("button", name="grass").click()
    page.keyboard.press("f")
    canvas.click(position={"x": 5, "y": 5})
    shown = page.evaluate(
        "() => [...document.querySelector('.sheet canvas').getContext('2d').getImageData(1, 1, 1, 1).data]"
    )
    assert shown == [0, 160, 0, 255]
    generate(page, 1)


def test_draw_boxes_with_classes(page: "Page", studio: "Studio") -> None:
    choose(page, "boxes")
    ground = page.locator(".ground")
    drag(page, ground, (0.1, 0.1), (0.5, 0.6))
    drag(page, ground, (0.55, 0.5), (0.95, 0.9))
    page.get_by_label("Class of box 2").select_option("star")
    page.keyboard.press("Escape")
    page.locator(".boxlist li").first.get_by_title("Later").click()
    assert page.get_by_label("Class of box 1").input_value() == "star"
    drag(page, ground, (0.3, 0.3), (0.4, 0.4))  # moves the box below the pointer
    name = generate(page, 1)[0]
    boxes = settings(page, name)["boxes"]
    assert [box["label"] for box in boxes] == ["star", "circle"]
    np.testing.assert_allclose(boxes[0]["box"], [0.55, 0.5, 0.4, 0.4], atol=0.02)
    np.testing.assert_allclose(boxes[1]["box"], [0.2, 0.2, 0.4, 0.5], atol=0.02)


def test_pull_an_image_beyond_its_borders(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator("[data-task=outpaint]").click()
    give_image(page, studio)
    page.get_by_label("Pixels on the left").fill("0")
    page.get_by_label("Pixels on the right").fill("8")
    page.get_by_label("Extend bottom").focus()
    page.keyboard.press("Shift+ArrowDown")
    page.get_by_text("24 × 16 becomes 32 × 24").wait_for()
    name = generate(page, 1)[0]
    assert pixels(studio.root / "kept" / "images" / name).shape == (24, 32, 3)


def test_a_dropped_png_brings_its_settings_back_and_makes_the_same_image(page: "Page", studio: "Studio") -> None:
    pytest.importorskip("sfumato.provenance")
    choose(page, "text")
    page.fill("[data-field=prompt] textarea", "two blue discs")
    page.fill("[data-field=count] input", "1")
    first = generate(page, 1)[0]
    page.locator(".cell").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    saved = studio.root / "saved.png"
    download.value.save_as(saved)
    page.keyboard.press("Escape")
    page.fill("[data-field=prompt] textarea", "something else")
    page.fill("[data-field=seed] input", "77")
    drop(page, saved)
    page.get_by_text("The settings of saved.png are in the form.").wait_for()
    assert page.input_value("[data-field=prompt] textarea") == "two blue discs"
    again = generate(page, 1)[0]
    kept = studio.root / "kept" / "images"
    assert again != first
    np.testing.assert_array_equal(pixels(kept / again), pixels(kept / first))


def test_view_compare_and_delete(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.fill("[data-field=count] input", "2")
    generate(page, 2)
    page.locator(".cell").first.click()
    page.keyboard.press("c")
    page.locator(".strip .pick").first.click()
    page.get_by_label("Share of the first image").fill("20")
    page.get_by_role("button", name="Side by side").click()
    assert page.locator(".comparison .pair img").count() == 2
    page.keyboard.press("c")
    page.set_viewport_size({"width": 500, "height": 700})
    page.wait_for_function("() => innerWidth === 500")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    for _ in range(12):
        page.keyboard.press("+")
    frame = page.locator(".stagearea .canvas")
    middle = "(each) => (each.scrollLeft + each.clientWidth / 2) / each.scrollWidth"
    assert abs(frame.evaluate(middle) - 0.5) < 0.01  # zooming keeps the middle
    drag(page, frame, (0.6, 0.5), (0.4, 0.5))
    assert frame.evaluate(middle) > 0.55
    page.keyboard.press("ArrowRight")
    before = page.locator(".cell").count()
    page.get_by_role("button", name="Delete").click()
    page.wait_for_function(f"() => document.querySelectorAll('.cell').length === {before - 1}")


def test_settings_are_shown_and_taken_over_as_they_are_typed(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.fill("[data-field=seed] input", "41")
    page.fill("[data-field=count] input", "1")
    generate(page, 1)
    assert page.locator(".common [data-field=seeds]").count() == 0  # among the further options
    page.locator(".cell").first.click()
    facts = dict(zip(*(page.locator(f".facts {each}").all_inner_texts() for each in ("dt", "dd")), strict=True))
    assert (facts["seed"], facts["pixels"]) == ("41", "24 × 16")
    assert "size" not in facts
    page.get_by_role("button", name="Use these settings").click()
    assert page.input_value("[data-field=seed] input") == "41"
    assert page.input_value("[data-field=seeds] input") == ""
    page.fill("[data-field=seed] input", "42")
    assert settings(page, generate(page, 1)[0])["seeds"] == [42]


def test_a_narrow_window_shows_what_was_asked_for(page: "Page", studio: "Studio") -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    choose(page, "text")
    page.evaluate("() => scrollTo(0, 0)")
    name = generate(page, 1)[0]
    made = page.locator(f".cell[data-done='{name}']")
    in_view = "each => { const at = each.getBoundingClientRect(); return at.top >= 40 && at.bottom <= innerHeight; }"
    page.wait_for_function(f"each => ({in_view})(each)", arg=made.element_handle())
    made.click()
    page.get_by_text("Use as the input of").click()
    page.locator("dialog").get_by_role("button", name="Inpaint").click()
    page.wait_for_selector(".sheet canvas")
    top = "document.querySelector('.stage').getBoundingClientRect().top"
    page.wait_for_function(f"() => {top} >= 40 && {top} < 120")


def test_mistakes_are_told_at_the_field(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.fill("[data-field=steps] input", "0")
    page.locator("button[type=submit]").click()
    told = page.locator(".submit .bad")
    told.wait_for()
    assert "give a whole number from 1" in told.inner_text()
    page.fill("[data-field=steps] input", "")


def test_narrow_windows_do_not_scroll_sideways(page: "Page", studio: "Studio") -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for name in ("make", "train", "models", "evaluate"):
        page.goto(studio.page(name))
        page.wait_for_selector(".panel, .page")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name


def test_light_and_dark_are_kept(page: "Page", studio: "Studio") -> None:
    theme = "document.documentElement.dataset.theme"
    assert page.evaluate(theme) == "light"
    page.get_by_role("button", name="Light or dark").click()
    page.reload()
    assert page.evaluate(theme) == "dark"
