"""The editors of hand-drawn inputs: handles and order of boxes, holes inverted and feathered, narrow windows."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browsing import choose, drag, generate, give_image, more, pixels, settings

from sfumato.tasks.compositing import feathered

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from conftest import Studio

HOLE = """() => {
    const canvas = document.querySelector('.sheet canvas');
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const shown = copy.getImageData(0, 0, canvas.width, canvas.height).data;
    return [canvas.height, canvas.width, [...shown].filter((_, i) => i % 4 === 3)];
}"""
FAINTEST, FULL = 70, 205
"""Of 255: how a hole is shown where the share of new pixels is least, and where it is 1."""
BOXES = """() => [...document.querySelectorAll('.ground .box')].map((box) =>
    ['left', 'top', 'width', 'height'].map((side) => parseFloat(box.style[side]) / 100))"""
LEAST = 0.02
SHIFTS = """() => {
    window.moved = [];
    const told = (one) => `${one.value.toFixed(3)} ${one.sources.map((each) => each.node && each.node.className)}`;
    const large = (list) => list.getEntries().filter((one) => one.value >= 0.001);
    new PerformanceObserver((list) => window.moved.push(...large(list).map(told)))
        .observe({ type: 'layout-shift', buffered: true });
}"""


def boxes(page: "Page") -> list[list[float]]:
    """x, y, width and height of the boxes as shown, as shares of the image."""
    found: list[list[float]] = page.evaluate(BOXES)
    return found


def shown(page: "Page") -> "np.ndarray[Any, Any]":
    """(H, W): how opaque each pixel of the hole is."""
    height, width, values = page.evaluate(HOLE)
    return np.array(values).reshape(height, width)


def test_handles_move_their_own_sides(page: "Page", studio: "Studio") -> None:
    choose(page, "boxes")
    ground = page.locator(".ground")
    drag(page, ground, (0.3, 0.3), (0.7, 0.8))
    (before,) = boxes(page)
    area = ground.bounding_box()
    assert area is not None
    by = (0.1, -0.15)
    moved = by[0] * area["width"], by[1] * area["height"]
    for handle in ("nw", "n", "ne", "e", "se", "s", "sw", "w"):
        drag(page, page.locator(f".handle.{handle}"), (0.5, 0.5), (0.5, 0.5), moved)
        (after,) = boxes(page)
        x, y, w, h = before
        ends = {"w": x, "e": x + w, "n": y, "s": y + h}
        for side in handle:
            ends[side] += by[0] if side in "we" else by[1]
        expected = [ends["w"], ends["n"], ends["e"] - ends["w"], ends["s"] - ends["n"]]
        np.testing.assert_allclose(after, expected, atol=0.01, err_msg=handle)
        page.keyboard.press("Control+z")
        np.testing.assert_allclose(boxes(page), [before], atol=1e-4)


def test_a_handle_stops_before_the_opposite_side_and_at_the_border(page: "Page", studio: "Studio") -> None:
    choose(page, "boxes")
    ground = page.locator(".ground")
    drag(page, ground, (0.3, 0.3), (0.6, 0.6))
    drag(page, page.locator(".handle.e"), (0.5, 0.5), (0.5, 0.5), (-1000, 0))
    np.testing.assert_allclose(boxes(page), [[0.3, 0.3, LEAST, 0.3]], atol=0.01)
    drag(page, page.locator(".handle.se"), (0.5, 0.5), (0.5, 0.5), (2000, 2000))
    np.testing.assert_allclose(boxes(page), [[0.3, 0.3, 0.7, 0.7]], atol=0.01)
    drag(page, page.locator(".box span"), (0.5, 0.5), (0.5, 0.5), (-2000, -2000))  # moved, at its size
    np.testing.assert_allclose(boxes(page), [[0, 0, 0.7, 0.7]], atol=0.01)


def test_a_press_is_no_step_to_undo(page: "Page", studio: "Studio") -> None:
    choose(page, "boxes")
    ground = page.locator(".ground")
    drag(page, ground, (0.1, 0.1), (0.5, 0.5))
    (first,) = boxes(page)
    drag(page, ground, (0.3, 0.3), (0.4, 0.4))
    for _ in range(3):
        drag(page, ground, (0.3, 0.35), (0.3, 0.35))  # on the box
        drag(page, ground, (0.9, 0.9), (0.9, 0.9))  # beside it: makes none
    page.keyboard.press("Control+z")
    np.testing.assert_allclose(boxes(page), [first], atol=1e-4)
    page.keyboard.press("Control+z")
    assert boxes(page) == []


def test_boxes_by_keyboard(page: "Page", studio: "Studio") -> None:
    choose(page, "boxes")
    page.locator(".ground").focus()
    page.keyboard.press("n")
    page.keyboard.press("ArrowRight")  # one of 24 pixels
    page.keyboard.press("Shift+ArrowDown")  # one of 16
    np.testing.assert_allclose(boxes(page), [[0.25 + 1 / 24, 0.25, 0.5, 0.5 + 1 / 16]], atol=1e-3)
    page.keyboard.press("n")
    page.get_by_label("Class of box 2").focus()
    page.keyboard.press("s")  # square, by its first letter
    page.keyboard.press("Tab")  # earlier
    page.keyboard.press("Enter")
    assert page.evaluate("() => document.activeElement.title") == "Earlier"  # the focus moves with the row
    assert page.get_by_label("Class of box 1").input_value() == "square"
    assert page.locator(".boxlist li").first.get_attribute("class") == "chosen"
    page.get_by_label("Class of box 2").focus()
    assert page.locator(".boxlist li.chosen select").get_attribute("aria-label") == "Class of box 2"
    page.locator(".boxlist li").nth(1).get_by_title("Remove").press("Enter")
    assert len(boxes(page)) == 1
    page.locator(".ground").focus()
    page.keyboard.press("Delete")
    assert boxes(page) == []


def test_a_hole_is_inverted_and_undone_and_its_feather_shown_as_it_is_blended(page: "Page", studio: "Studio") -> None:
    choose(page, "text")
    page.locator("[data-task=inpaint]").click()
    give_image(page, studio)
    more(page)
    feather = page.locator("[data-field=feather] input").first
    feather.fill("0")
    canvas = page.locator(".sheet canvas")
    drag(page, canvas, (0.0, 0.4), (0.5, 0.7))
    hard = shown(page)
    assert set(np.unique(hard)) == {0, FULL}
    canvas.focus()
    page.keyboard.press("i")
    np.testing.assert_array_equal(shown(page), FULL - hard)
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(shown(page), hard)
    page.keyboard.press("Control+Shift+z")
    np.testing.assert_array_equal(shown(page), FULL - hard)
    for amount in (1, 3):
        feather.fill(str(amount))
        share = feathered(torch.from_numpy(hard == 0), amount).numpy()
        expected = np.where(share > 0, FAINTEST + (FULL - FAINTEST) * share, 0)
        np.testing.assert_allclose(shown(page), expected, atol=0.51)
    name = generate(page, 1)[0]
    before, after = pixels(studio.root / "input.png"), pixels(studio.root / "kept" / "images" / name)
    np.testing.assert_array_equal(before[hard > 0], after[hard > 0])  # outside of the inverted hole
    assert (before[hard == 0] != after[hard == 0]).any()
    assert settings(page, name)["feather"] == 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_editors_fit_a_narrow_window(page: "Page", studio: "Studio", theme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    if page.evaluate("document.documentElement.dataset.theme") != theme:
        page.get_by_role("button", name="Light or dark").click()
    for model, task in (
        ("text", "inpaint"),
        ("text", "outpaint"),
        ("text", "interpolate"),
        ("map", None),
        ("boxes", None),
    ):
        choose(page, model)
        if task:
            page.locator(f"[data-task={task}]").click()
        if task == "inpaint":
            give_image(page, studio)
        editor = page.locator(".stage .editor, .stage .between").first
        editor.wait_for()
        box = editor.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390, model
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), model
        for control in editor.locator(".toolbar button, .boxlist button, .swatch").all():
            size = control.bounding_box()
            assert size is not None
            assert min(size["width"], size["height"]) >= 24, control.get_attribute("aria-label")


def test_nothing_moves_while_a_page_opens_or_images_form(page: "Page", studio: "Studio") -> None:
    page.evaluate(SHIFTS)
    choose(page, "text")
    page.fill("[data-field=count] input", "2")
    page.fill("[data-field=steps] input", "6")
    page.locator("button[type=submit]").click()
    page.wait_for_selector(".cell.forming")
    page.evaluate("() => { window.moved = []; }")  # what the presses moved
    page.wait_for_function(
        "() => [...document.querySelectorAll('.cell')].slice(0, 2).every((cell) => cell.dataset.done)"
    )
    page.fill("[data-field=steps] input", "")
    assert page.evaluate("() => window.moved") == []
    for name in ("train", "models", "evaluate", "make"):
        page.goto(studio.page(name))
        page.wait_for_selector(".panel, .page")
        page.evaluate("() => { window.moved = []; }")
        page.wait_for_timeout(400)
        assert page.evaluate("() => window.moved") == [], name
    page.select_option("#model", "boxes")
    page.reload()
    page.evaluate(SHIFTS)
    page.wait_for_selector(".ground")
    page.wait_for_timeout(400)
    assert page.evaluate("() => window.moved") == []
