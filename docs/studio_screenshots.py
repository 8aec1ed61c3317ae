"""Takes the screenshots of docs/studio.md: the studio in Chromium, with `zoo:toy` and what is in a folder.

    pip install -c constraints.txt -e ".[web,browser]"
    python docs/studio_screenshots.py runs docs

`runs` may have the run of a finished `sfumato fit`, which the screenshots of Train and Models show. With `--all`, every
page is taken wide and narrow, light and dark, to be looked at before the few of the docs are replaced.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE, NARROW = (1280, 800), (390, 800)
GAP = 24
"""Pixels between two narrow screenshots."""
COLOURS = 256
SECONDS = 300.0
MADE = (
    (5, "a large red heart on a white background"),
    (3, "a small orange square on a sky background"),
    (8, "a purple star above a green ring on a navy background"),
    (2, "a large yellow star on a black background"),
    (1, "a cyan circle left of a purple triangle on a beige background"),
    (7, "a blue triangle right of a pink heart on a grey background"),
    (4, "a large green ring on a white background"),
    (6, "an orange circle below a blue star on a black background"),
)
"""Seeds and prompts of the gallery, oldest first."""


@dataclass(frozen=True)
class Shot:
    """A page as it is taken: what is done on it first, the window's (width, height), the theme."""

    do: Callable[["Page"], None]
    size: tuple[int, int] = WIDE
    theme: str = "light"


# ---- what is done on the pages


def make(page: "Page") -> None:
    """The page that makes images, with a gallery."""
    go(page, "make")
    page.wait_for_selector(".cell[data-done]")
    page.fill("[data-field=prompt] textarea", MADE[-1][1])
    page.locator("[data-field=prompt] textarea").blur()


def inpaint(page: "Page") -> None:
    """A hole painted over the upper object of an image."""
    make(page)
    page.locator(".cell .open").nth(5).click()
    page.get_by_text("Use as the input of").click()
    page.locator("dialog").get_by_role("button", name="Inpaint").click()
    page.wait_for_selector(".sheet canvas")
    page.fill("[data-field=prompt] textarea", "a yellow heart above a green ring on a navy background")
    page.evaluate("() => scrollTo(0, 0)")
    for _ in range(4):
        page.keyboard.press("]")  # a larger brush
    box = page.locator(".sheet canvas").bounding_box()
    assert box is not None
    at = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in ((0.35, 0.25), (0.6, 0.2), (0.5, 0.36))
    ]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def viewer(page: "Page") -> None:
    """One image enlarged, with its settings."""
    make(page)
    page.locator(".cell .open").first.click()
    page.wait_for_selector("dialog.viewer img")


def train(page: "Page") -> None:
    """The run of the folder, or the card of a new training where there is none."""
    go(page, "train")
    page.wait_for_selector(".start:visible, .chart .curve")
    page.wait_for_timeout(500)


def models(page: "Page") -> None:
    """Every model."""
    go(page, "models")
    page.wait_for_selector(".card")


def evaluate(page: "Page") -> None:
    """Cards, or how one is made."""
    go(page, "evaluate")
    page.wait_for_selector(".tablewrap, .empty")


def keys(page: "Page") -> None:
    """The list of keys."""
    make(page)
    page.keyboard.press("?")


def outpaint(page: "Page") -> None:
    """Handles at the sides of an image."""
    inpaint(page)
    page.locator("[data-task=outpaint]").click()
    page.wait_for_selector(".extent")


def interpolate(page: "Page") -> None:
    """Two images of the gallery."""
    make(page)
    page.locator("[data-task=interpolate]").click()
    page.wait_for_selector(".endpoint")


def options(page: "Page") -> None:
    """The further options, unfolded."""
    make(page)
    page.locator("details.more summary", has_text="More options").click()
    page.locator(".request").evaluate("(each) => { each.scrollTop = 420; }")


def start(page: "Page") -> None:
    """The card of a new training, with a look at the images."""
    go(page, "train")
    page.wait_for_selector(".page header button:enabled")
    if page.locator("#data").is_hidden():
        page.get_by_role("button", name="New training").click()
    if page.locator("#data").input_value():
        page.get_by_role("button", name="Look at it").click()
        page.wait_for_selector(".mosaic img")


PAGES = (make, inpaint, outpaint, interpolate, options, viewer, keys, train, start, models, evaluate)
SCREENSHOTS = {
    "studio-make": (Shot(make),),
    "studio-inpaint": (Shot(inpaint, theme="dark"),),
    "studio-train": (Shot(train, (1280, 860)),),
    "studio-models": (Shot(models, (1280, 700)),),
    "studio-narrow": (Shot(make, NARROW), Shot(viewer, NARROW, "dark"), Shot(models, NARROW)),
}


# ---- the studio and the browser


@contextmanager
def studio(folders: list[Path], kept: Path) -> Iterator[str]:
    """The address of a running studio."""
    command = [sys.executable, "-m", "sfumato", "studio", *map(str, folders), "--out", str(kept), "--port", "0"]
    log = kept / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--no-browser"], stdout=stream, stderr=subprocess.STDOUT, env=os.environ)
    try:
        yield address(log, process)
    finally:
        process.terminate()
        process.wait(30)


def address(log: Path, process: "subprocess.Popen[bytes]") -> str:
    """What the studio printed. Raises RuntimeError where it ended instead."""
    t_end = time.monotonic() + SECONDS
    while time.monotonic() < t_end and process.poll() is None:
        if found := re.search(r"http://\S+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"the studio did not start:\n{log.read_text()}")


def go(page: "Page", name: str) -> None:
    """One of the studio's pages, loaded anew."""
    page.goto(f"{page.url.split('#')[0]}#/{name}")
    page.reload()


def fill_gallery(page: "Page") -> None:
    """One image for each of the prompts, by zoo:toy."""
    for seed, prompt in MADE:
        before = page.locator(".cell[data-done]").count()
        page.fill("[data-field=prompt] textarea", prompt)
        page.fill("[data-field=seed] input", str(seed))
        page.fill("[data-field=guidance] input", "1.5")
        page.locator("button[type=submit]").click()
        page.wait_for_function(f"() => document.querySelectorAll('.cell[data-done]').length > {before}")


def taken(browser: "Browser", opened: str, shot: Shot) -> Image.Image:
    """The screenshot of a page in a window of its own."""
    width, height = shot.size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=shot.theme, reduced_motion="reduce"
    )
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.goto(opened)
    page.select_option("#model", "zoo:toy")
    shot.do(page)
    page.wait_for_load_state("networkidle")
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    context.close()
    return image


def beside(images: list[Image.Image]) -> Image.Image:
    """Screenshots in one row, on white."""
    if len(images) == 1:
        return images[0]
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + GAP
    return row


def smaller(screenshot: Image.Image) -> Image.Image:
    """The screenshot in the palette that fits it best, as a small file."""
    return screenshot.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)


def shots(every: bool, only: list[str]) -> dict[str, tuple[Shot, ...]]:
    """What is taken, by the file's name: `every` page in all looks, or the screenshots of the docs."""
    screenshots: dict[str, tuple[Shot, ...]] = SCREENSHOTS
    if every:
        looks = [(size, theme) for size in (WIDE, NARROW) for theme in ("light", "dark")]
        screenshots = {
            f"{do.__name__}-{size[0]}-{theme}": (Shot(do, size, theme),) for do in PAGES for size, theme in looks
        }
    return {name: each for name, each in screenshots.items() if not only or name.startswith(tuple(only))}


def take(browser: "Browser", opened: str, out: Path, screenshots: dict[str, tuple[Shot, ...]]) -> None:
    """Fills an empty gallery, then writes the screenshots."""
    context = browser.new_context()
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.goto(opened)
    page.select_option("#model", "zoo:toy")
    page.wait_for_load_state("networkidle")
    if page.locator(".cell").count() == 0:
        fill_gallery(page)
    context.close()
    out.mkdir(parents=True, exist_ok=True)
    for name, each in screenshots.items():
        smaller(beside([taken(browser, opened, shot) for shot in each])).save(out / f"{name}.png", optimize=True)
        print(out / f"{name}.png", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="folders for the studio, then OUT")
    parser.add_argument("--all", action="store_true", help="every page, wide and narrow, light and dark")
    parser.add_argument("--only", nargs="*", default=[], help="those whose names begin with one of these")
    parser.add_argument("--kept", type=Path, help="the studio's --out, whose images are used again")
    given = parser.parse_args()
    *folders, out = given.folders
    from playwright.sync_api import sync_playwright

    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    with tempfile.TemporaryDirectory() as temporary:
        kept = given.kept or Path(temporary)
        kept.mkdir(exist_ok=True)
        with studio(folders, kept) as opened, sync_playwright() as running:
            browser = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
            take(browser, opened, out, shots(given.all, given.only))
            browser.close()


if __name__ == "__main__":
    main()
