"""The models of the package in a browser, before anything was made: the first of the browser tests."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_first_image_by_one_press(page: "Page") -> None:
    page.select_option("#model", "zoo:toy")
    seed = page.locator("[data-field=seed] input")
    assert (seed.input_value(), seed.get_attribute("placeholder")) == ("", "new each time")
    page.get_by_role("button", name="Try “a large red circle on a white background”").click()
    page.locator(".cell[data-done]").wait_for()
    made = page.get_by_role("button", name="Image: a large red circle on a white background")
    made.wait_for()
    assert made.count() == 1
    assert page.locator(".cell.failed").count() == 0
    assert seed.input_value().isdecimal()  # the one that was drawn
    page.goto(page.url.split("#")[0] + "#/models")
    page.get_by_text("zoo:toy and zoo:emoji are part of the package").wait_for()
    page.locator(".card", has_text="zoo:toy").get_by_alt_text("Samples of zoo:toy").wait_for()
    page.wait_for_function("() => document.querySelector('[alt=\"Samples of zoo:toy\"]').naturalWidth > 0")
