"""Training from the page: looking at a folder, starting, watching, stopping, a run of a terminal, evaluation."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

    from conftest import Studio


TINY = (
    "autoencoder.train.steps=100000 train.batch=4 train.log_every=1 train.save_every=20 train.preview_every=5 "
    "train.workers=0 train.precision=float32 data.size=16 model.channels=8 model.norm_groups=2 "
    "model.channel_multipliers=[1,1] denoiser.channels=32 denoiser.norm_groups=4 denoiser.channel_multipliers=[1] "
    "denoiser.attention_factors=[] conditioner.dim=16 conditioner.head_dim=4 diffusion.train.steps=4"
)
REFUSED = "Failed to load resource: the server responded with a status of 400 (Bad Request)"


def test_look_at_a_folder(page: "Page", studio: "Studio", expected: list[str]) -> None:
    page.goto(studio.page("train"))
    opened(page)
    page.fill("#data", str(studio.root / "images"))
    page.get_by_role("button", name="Look at it").click()
    page.wait_for_selector(".mosaic img")
    numbers = page.locator(".numbers").first.inner_text()
    assert "12" in numbers
    assert "“a square at place" in page.locator(".quotes").inner_text()
    expected.append(REFUSED)
    page.fill("#data", "/etc")
    page.get_by_role("button", name="Look at it").click()
    page.get_by_text("is outside of the studio's folders").wait_for()


def test_one_folder_is_filled_in_and_of_several_none(page: "Page", studio: "Studio") -> None:
    listed = [{"path": f"/data/{name}", "name": name, "images": 12} for name in ("docs", "photographs")]
    for folders, value in ((listed[1:], "/data/photographs"), (listed, "")):
        page.unroute_all()
        page.route("**/studio/folders", partial(answer, {"folders": folders}))
        page.goto(studio.page("train"))
        page.reload()
        opened(page)
        page.wait_for_function("n => document.querySelectorAll('#folders option').length === n", arg=len(folders))
        assert page.input_value("#data") == value
    assert page.get_attribute("#data", "placeholder") == "one of 2 folders with images, or another"


def answer(content: dict[str, Any], route: "Route") -> None:
    route.fulfill(json=content)


def test_a_training_is_started_reloaded_stopped_and_continued(page: "Page", studio: "Studio") -> None:
    run = studio.root / "runs" / "fitted" / "autoencoder"
    page.goto(studio.page("train"))
    opened(page)
    page.fill("#data", str(studio.root / "images"))
    page.fill("#minutes", "5")
    page.fill("#out", str(run.parent))
    page.fill("#settings", TINY)
    page.get_by_role("button", name="Start training").click()
    state = page.locator(".run .title")
    state.get_by_text("Autoencoder · step").wait_for()
    page.wait_for_selector(".chart .curve")
    page.wait_for_function("() => document.querySelector('.preview img').naturalWidth > 0")
    assert "a second" in page.locator(".numbers").last.inner_text()
    page.reload()
    state.get_by_text("Autoencoder · step").wait_for()
    page.get_by_role("button", name="Stop").click()
    state.get_by_text("stopped at step").wait_for()
    before = trained_steps(run)
    page.get_by_role("button", name="Continue").click()
    page.wait_for_function(
        """before => {
            const found = document.querySelector('.run .title').innerText.match(/· step (\\d+)/);
            return found && Number(found[1]) > before;
        }""",
        arg=before[-1],
    )
    page.get_by_role("button", name="Stop").click()
    state.get_by_text("stopped at step").wait_for()
    steps = trained_steps(run)
    assert steps == sorted(set(steps))  # it went on where it was
    assert steps[: len(before)] == before
    assert len(steps) > len(before)


def test_a_training_that_cannot_be_says_why(page: "Page", studio: "Studio") -> None:
    page.goto(studio.page("train"))
    opened(page)
    model = studio.root / "models" / "text"
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    page.fill("#data", str(studio.root / "images"))
    page.fill("#out", str(model))
    page.get_by_role("button", name="Start training").click()
    page.locator("pre.output", has_text="is in use, it holds").wait_for()
    page.locator(".runlist", has_text="failed").wait_for()
    assert before
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_a_run_of_a_terminal_appears_with_curves_and_previews(page: "Page", studio: "Studio") -> None:
    run = studio.root / "runs" / "by-hand"
    fabricate(run, 20)
    page.goto(studio.page(f"train/{str(run).replace('/', '%2F')}"))
    page.locator(".run h2", has_text="by-hand").wait_for()
    page.wait_for_selector(".chart .curve")
    assert "stopped at step 20" in page.locator(".run .title").inner_text()
    page.wait_for_function("() => document.querySelector('.preview img').naturalWidth > 0")
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 30, "loss": 0.1, "images": 60, "seconds": 3.0}) + "\n")
    page.locator(".numbers dd", has_text="30").first.wait_for()  # without a reload


def test_runs_over_each_other(page: "Page", studio: "Studio") -> None:
    for name in ("by-hand", "another"):
        fabricate(studio.root / "runs" / name, 20)
    page.goto(studio.page("train"))
    page.get_by_role("link", name="by-hand").click()
    page.wait_for_selector(".chart .curve")
    curves = page.locator(".chart").first.locator(".curve")
    assert curves.count() == 1
    page.get_by_label("Show another in the charts").check()
    page.wait_for_function("() => document.querySelectorAll('.chart')[0].querySelectorAll('.curve').length === 2")
    assert len({curve.get_attribute("class") for curve in curves.all()}) == 2, "each run has its own colour"


def test_models_of_every_kind_are_listed(page: "Page", studio: "Studio") -> None:
    page.goto(studio.page("models"))
    page.wait_for_selector(".card")
    names = page.locator(".card h2").all_inner_texts()
    assert {"text", "map", "boxes", "masked"} <= set(names)


def test_cards_side_by_side(page: "Page", studio: "Studio") -> None:
    for name, value in (("one", 3.5), ("two", 2.5)):
        card(studio.root / "runs" / f"card-{name}", value)
    page.goto(studio.page("evaluate"))
    page.locator("table.compare td.best").wait_for()
    assert page.locator("table.compare td.best").inner_text().startswith("2.50")


def trained_steps(run: Path) -> list[int]:
    """The steps in a run's log, without the lines of its previews."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "images" in line]


def opened(page: "Page") -> None:
    """Unfolds the card of a new training."""
    page.wait_for_selector(".page header button:enabled")
    if page.locator("#data").is_hidden():
        page.get_by_role("button", name="New training").click()


def fabricate(run: Path, steps: int) -> None:
    """A run as a training leaves it."""
    (run / "previews").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("format: 2\ndenoiser: {}\ntrain: {steps: 40, minutes: null}\n")
    lines = [{"step": i, "loss": 1 / i, "images": 2 * i, "seconds": i / 10} for i in range(1, steps + 1)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Image.new("RGB", (64, 32), (200, 40, 40)).save(run / "previews" / "samples-00000010.png")


def card(folder: Path, value: float) -> None:
    """An evaluation card with one number."""
    folder.mkdir(parents=True)
    metric = {"value": value, "better": "lower", "protocol": {"network": "n"}}
    about = {"kind": "samples", "version": "0", "created": f"2026-01-0{int(value)}T00:00:00"}
    facts = {"subject": {"path": folder.name}, "data": {"path": "images"}, "protocol": {"images": 8}}
    (folder / "card.json").write_text(json.dumps({**about, **facts, "metrics": {"fd": metric}}))
