"""Shared by the browser tests: choosing a model, generating, giving images, dragging."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

    from conftest import Studio


def choose(page: "Page", model: str) -> None:
    """Chooses a model and its usual task."""
    page.select_option("#model", model)
    page.locator(".segments button[data-task]").first.click()


def more(page: "Page") -> None:
    """Unfolds the further options."""
    if page.locator("details.more[open]").count() == 0:
        page.locator("details.more summary", has_text="More options").click()


def settings(page: "Page", name: str) -> dict[str, Any]:
    """The request that made an image of the gallery."""
    found = page.evaluate(
        "name => fetch('/studio/images').then((a) => a.json()).then((all) => all.images.find((i) => i.name === name))",
        name,
    )
    request: dict[str, Any] = found["settings"]["request"]
    return request


def generate(page: "Page", count: int) -> list[str]:
    """Presses the button and waits for the images; their names, in the order shown."""
    before = (
        page.locator(".cell[data-done]").first.get_attribute("data-done")
        if page.locator(".cell[data-done]").count()
        else ""
    )
    page.locator("button[type=submit]").click()
    page.wait_for_function(
        """([before, count]) => {
            if (document.querySelector('.cell.failed, .submit .bad:not([hidden])')) return true;
            const cells = [...document.querySelectorAll('.cell')];
            const fresh = (each) => each.dataset.done && each.dataset.done !== before;
            return cells.length >= count && cells.slice(0, count).every(fresh);
        }""",
        arg=[before, count],
    )
    failed = page.locator(".cell.failed, .submit .bad:not([hidden])")
    assert not failed.count(), failed.first.inner_text()
    return [str(cell.get_attribute("data-done")) for cell in page.locator(".cell").all()[:count]]


def give_image(page: "Page", studio: "Studio", size: tuple[int, int] = (24, 16)) -> None:
    """An image of the model's size, or of another (width, height), as the input."""
    path = studio.root / "input.png"
    noise = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    page.set_input_files(".slot input[type=file]", path)
    page.wait_for_selector(".slot .filled")


def drop(page: "Page", path: Path) -> None:
    """Drops a file on the page, as from a file manager."""
    content = list(path.read_bytes())
    page.evaluate(
        """([content, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], name, { type: 'image/png' }));
            const given = { dataTransfer: data, bubbles: true, cancelable: true };
            document.querySelector('.work').dispatchEvent(new DragEvent('drop', given));
        }""",
        [content, path.name],
    )


def drag(
    page: "Page",
    target: "Locator",
    start: tuple[float, float],
    end: tuple[float, float],
    by: tuple[float, float] = (0, 0),
) -> None:
    """Presses at one place of an element, in shares of its sides, and lets go at another, and `by` pixels further."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    assert box is not None
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(at[1][0] + by[0], at[1][1] + by[1], steps=6)
    page.mouse.up()


def pixels(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
