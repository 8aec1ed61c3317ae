"""The shipped model in a browser, before anything was made: the first of the browser tests."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_first_image_by_one_press(page: "Page") -> None:
    page.select_option("#model", "zoo:toy")
    page.get_by_role("button", name="Try “a large red circle on a white background”").click()
    page.locator(".cell[data-done]").wait_for()
    page.get_by_role("button", name="Image: a large red circle on a white background").wait_for()
    page.goto(page.url.split("#")[0] + "#/models")
    page.locator(".card", has_text="zoo:toy").get_by_alt_text("Samples of zoo:toy").wait_for()
