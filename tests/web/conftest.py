"""A studio with tiny models of every task, and a browser that fails a test on any error or foreign request."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

import tiny
from sfumato.model import LatentDiffusion

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 600.0
NOT_DROPPED = "diffusion.condition_dropout=0"
SEMANTIC = "diffusion.conditioner={kind: semantic, classes: 5, stages: 1, void: 255}"
LAYOUT = (
    "diffusion.conditioner={kind: layout, classes: 4, objects: 3, vocabulary: 99, dim: 16, depth: 1, heads: 2, "
    "head_dim: 8}"
)
MASKED = (
    "diffusion.conditioner={kind: composite, parts: {masked_image: {kind: image, field: masked_latent, channels: 3}, "
    "mask: {kind: image, field: mask, channels: 1}}}"
)
SMALL = "diffusion.conditioner={kind: image, field: low_resolution, channels: 3}"
MAP = (
    "conditioning_metadata={map: {names: [sky, grass, sea, sand, rock], "
    "palette: [[0,0,255],[0,160,0],[0,90,160],[230,200,120],[90,90,90]], void: 255}}"
)
BOXES = "conditioning_metadata={layout: {names: [circle, square, star, heart]}}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.web)


@dataclass(frozen=True)
class Studio:
    """A running studio: the address with its token, its folders, what it kept."""

    address: str
    root: Path

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    def page(self, name: str) -> str:
        """The address of one of the pages."""
        parts = urlsplit(self.address)
        return f"{parts.scheme}://{parts.netloc}/#/{name}"


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """`sfumato studio` as a user starts it, on a folder with models, images and a finished run."""
    pytest.importorskip("fastapi")
    root = tmp_path_factory.mktemp("studio")
    for name, model in models().items():
        model.save(root / "models" / name)
    images(root / "images")
    command = [sys.executable, "-m", "sfumato", "studio", "models", "images", "runs", "--out", "kept", "--port", "0"]
    (root / "runs").mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with (root / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, "--no-browser", "--precision", "float32", "--device", "cpu"],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Studio(_address(root / "log.txt", process), root)
        finally:
            process.terminate()
            process.wait(30)


def models() -> dict[str, LatentDiffusion]:
    """Untrained models of 16 × 24 pixels, whose conditions are felt."""
    return {
        "text": tiny.model(),
        "map": tiny.model(SEMANTIC, MAP),
        "boxes": tiny.model(LAYOUT, BOXES),
        "masked": tiny.model(MASKED, NOT_DROPPED),
        "small": tiny.model(SMALL, NOT_DROPPED),
    }


def images(folder: Path) -> None:
    """A folder of images with captions, to train on."""
    folder.mkdir()
    for i in range(12):
        image = Image.new("RGB", (40, 40), (20 * i, 250 - 20 * i, 90))
        image.paste((255, 255, 255), (5 + i, 8, 20 + i, 25))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a square at place {i}")


def _address(log: Path, process: "subprocess.Popen[Any]") -> str:
    t_end = time.monotonic() + SECONDS
    while time.monotonic() < t_end:
        found = re.search(r"http://\S+", log.read_text())
        if found:
            return found[0]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"the studio did not start:\n{log.read_text()}")


@pytest.fixture
def expected() -> list[str]:
    """Messages of the console that a test provokes on purpose."""
    return []


@pytest.fixture
def page(browser: "Browser", studio: Studio, expected: list[str]) -> Iterator["Page"]:
    """A new window on the studio. A console message, a script's error, or a request elsewhere fails the test."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 860}, accept_downloads=True, reduced_motion="reduce"
    )
    context.set_default_timeout(60_000)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda one: problems.append(one.text) if one.type in ("error", "warning") else None)
    opened.on("pageerror", lambda one: problems.append(str(one)))

    def check(request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != studio.host:
            problems.append(f"a request to {request.url}")

    opened.on("request", check)
    opened.goto(studio.address)
    opened.wait_for_selector(".panel")
    yield opened
    context.close()
    assert [one for one in problems if one not in expected] == []
