"""The benchmark of the paper's tasks: its measures on images with a known answer, and every task end to end."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tiny
from sfumato.data.toyworld.caption import parse
from sfumato.data.toyworld.reader import read_batch, read_maps
from sfumato.data.toyworld.render import MAP_NAMES, boxes, render, semantic_maps
from sfumato.data.toyworld.scene import Scene, scene
from sfumato.data.toyworld.vocabulary import Vocabulary
from sfumato.denoiser.unet import UNetConfig
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.rng import numpy_generator
from sfumato.training.optim import OptimiserConfig
from tasks import conditioned

ROOT = Path(__file__).parents[1]
WORDS = Vocabulary(arrangements=("single", "pair", "group"), textures=("plain", "striped"))
SIZE = (48, 64)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def scenes(n: int) -> list[Scene]:
    return [scene(0, index, "held-out", WORDS) for index in range(n)]


def shifted(images: Tensor) -> Tensor:
    return images.roll(8, -1)


# ---- the measures, where the answer is known


def test_pixels_of_real_scenes_agree_with_their_maps() -> None:
    from benchmarks.tasks.semantic import agreement, by_class

    shown, maps = render(scenes(12), SIZE), semantic_maps(scenes(12), SIZE)
    seen = {"real": read_maps(shown), "shifted": read_maps(shifted(shown)), "empty": torch.zeros_like(maps)}
    table = agreement(seen, maps)
    real, moved, empty = (dict(zip(table.columns, values, strict=True)) for values in table.rows.values())
    assert min(v for v in real.values() if v is not None) > 0.97
    assert moved["objects"] < 0.8
    background = (maps == 0).double().mean().item()
    assert (empty["all pixels"], empty["objects"], empty["background"]) == (pytest.approx(background), 0, 1)
    assert empty["mean IoU"] == pytest.approx(background / len(torch.unique(maps)))
    classes = by_class(seen, maps).rows["real"]
    assert [value is None for value in classes] == [not (maps == k).any() for k in range(len(MAP_NAMES))]


def test_boxes_of_real_scenes_are_found_again() -> None:
    from benchmarks.tasks.layout import iou, matched, recovery

    assert iou((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    size = (64, 64)
    layouts = [[(c, (x0, y0, x1, y1)) for c, x0, y0, x1, y1 in boxes(one, size)] for one in scenes(12)]
    shown = render(scenes(12), size)
    enough, named, both, mean, counts = recovery(layouts, read_batch(shown))
    assert (enough, named, both, counts) == (1, 1, 1, 1)
    assert mean > 0.9
    others = read_batch(shown.flip(0))
    assert recovery(layouts, others)[2] < 0.2
    # two boxes at the same place want two objects
    reading = read_batch(shown)[0]
    twice = [layouts[0][0]] * (len(reading.objects) + 1)
    assert sorted(place is None for _, place in matched(twice, reading))[-1]


def test_facts_of_what_was_hidden() -> None:
    from benchmarks.tasks.inpainting import over_objects, restored

    some = scenes(24)
    shown = render(some, SIZE)
    before = read_batch(shown)
    for half in (False, True):
        hidden = over_objects(some, SIZE, half, 0)
        whole = over_objects(some, SIZE, False, 0)
        assert not (hidden.holes & ~whole.holes).any()
        assert all(restored(some, hidden, before, before)[name] == 1 for name in ("hidden", "elsewhere", "shape"))
    holes = over_objects(some, SIZE, False, 0)
    ground = render([replace(one, objects=()) for one in some], SIZE)
    emptied = torch.where(holes.holes[:, None], ground, shown)
    gone = restored(some, holes, before, read_batch(emptied))
    assert gone["count"] == 0
    assert gone["hidden"] < 0.35
    assert gone["elsewhere"] > 0.95


def test_changes_that_are_made_count_as_made() -> None:
    from benchmarks.tasks.editing import KINDS, changed, held

    made = []
    some = [one for one in scenes(60) if one.arrangement != "group"][:24]
    changes = [changed(one, WORDS, numpy_generator(0, "change", i), KINDS[i % 4]) for i, one in enumerate(some)]
    for one, change in zip(some, changes, strict=True):
        description = parse(change.caption)
        assert [fact.kind for fact, new in zip(change.stated, change.new, strict=True) if new] == [change.kind]
        objects = tuple(
            replace(item, shape=mention.shape, colour=mention.colour, texture=mention.texture)
            for item, mention in zip(one.objects, description.mentions, strict=True)
        )
        made.append(replace(one, objects=objects, background=description.background or one.background))
    before, after = read_batch(render(some, 64)), read_batch(render(made, 64))
    asked, stays, both, by_kind = held(changes, before, after)
    assert min(asked, both) > 0.9
    assert stays > 0.97
    assert set(by_kind) == set(KINDS)
    assert held(changes, before, before)[:3] == (0, 1, 0)


def briefly(folder: Path, *overrides: str) -> None:
    """Trains a small regression for less than a second."""
    from benchmarks.regression import main

    config = "{channels: 16, channel_multipliers: [1, 2], blocks_per_level: 1, norm_groups: 8, head_channels: 16}"
    given = [f"denoiser={config}", "data.length=16", "train.batch=4", "data.size=32", *overrides]
    main(["--out", str(folder), "--minutes", "0.01", "--device", "cpu", *given])


def test_an_untrained_regression_is_the_bicubic_filter(tmp_path: Path) -> None:
    from benchmarks.regression import Regression, load_regression

    briefly(tmp_path)
    trained = load_regression(tmp_path)
    small = torch.rand(2, 3, 4, 8) * 2 - 1
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bicubic")
    fresh = Regression(trained.config)
    torch.testing.assert_close(fresh(small), large)
    assert trained.config.about["steps"] > 0
    assert not torch.allclose(trained(small), large)
    with pytest.raises(UserError, match=r"holds no regression.json"):
        load_regression(tmp_path / "nowhere")


def test_a_regression_passes_over_steps_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import regression

    mse, rate, rates, calls = torch.nn.functional.mse_loss, regression.learning_rate, [], range(1, 2)

    def poisoned(output: Tensor, target: Tensor) -> Tensor:
        return mse(output, target) * (float("nan") if len(rates) in calls else 1)

    def watched(recipe: OptimiserConfig, step: int, done: float) -> float:
        assert 0 <= done <= 1
        rates.append(rate(recipe, step, done))
        return rates[-1]

    monkeypatch.setattr(regression, "learning_rate", watched)
    monkeypatch.setattr(regression.F, "mse_loss", poisoned)
    briefly(tmp_path, "train.optimiser.warmup_steps=2", "train.optimiser.learning_rate=1e-3")
    trained = regression.load_regression(tmp_path)
    assert all(bool(torch.isfinite(p).all()) for p in trained.parameters())
    assert 0 < min(rates) <= max(rates) <= 1e-3
    assert trained.config.about["skipped"] == 1
    messages = capsys.readouterr().out
    assert "1 of them skipped: their gradients were not finite" in messages
    assert "nan dB" not in messages
    calls = range(10**6)
    with pytest.raises(UserError, match=r"not finite in 1 step in a row, up to step 1: give a lower"):
        briefly(tmp_path / "never", "train.max_skipped=1")


# ---- end to end

SEMANTIC = "diffusion.conditioner={kind: semantic, classes: 9, stages: 1, void: 255}"
LAYOUT = (
    "diffusion.conditioner={kind: layout, classes: 9, objects: 8, vocabulary: 99, dim: 16, depth: 1, heads: 2, "
    "head_dim: 8, crop_tokens: false}"
)
TEXT_DROPPED = "diffusion.part_dropout={tokens: 0.1}"
SIDE = "image_size=[32, 32]"
MODELS: dict[str, tuple[str, ...]] = {
    "semantic": (SEMANTIC,),
    "layout": (LAYOUT,),
    "super-res": (conditioned.SMALL, conditioned.NOT_DROPPED),
    "inpainting": (conditioned.STABLE, conditioned.NOT_DROPPED, TEXT_DROPPED),
    "edit": (),
}


def untrained_regression(folder: Path, factor: int) -> Path:
    from benchmarks.regression import Regression, RegressionConfig, save

    unet = UNetConfig(channels=8, channel_multipliers=(1,), attention_factors=(), head_channels=8, norm_groups=4)
    save(Regression(RegressionConfig(denoiser=unet, factor=factor)), folder)
    return folder


def saved(folder: Path, *overrides: str) -> Path:
    made: LatentDiffusion = tiny.model(SIDE, *overrides)
    made.save(folder)
    return folder


@pytest.mark.parametrize("task", MODELS)
def test_every_task_is_measured(task: str, tmp_path: Path) -> None:
    from benchmarks.tasks.__main__ import parsed, run

    model = saved(tmp_path / "model", *MODELS[task])
    given = [task, str(model), "--out", str(tmp_path / "out"), "--n", "3", "--steps", "1", "--device", "cpu"]
    more = ["--strengths", "0.5", "--batch", "2"] if task == "edit" else []
    if task == "super-res":
        more = ["--regression", str(untrained_regression(tmp_path / "regression", factor=2))]
    run(parsed([*given, *more]), say=lambda text: None)
    numbers = json.loads((tmp_path / "out" / f"{task}.json").read_text())
    about, rows = numbers["about"], numbers["tables"][0]["rows"]
    assert (about["images"], about["steps"], about["seeds"]) == (3, 1, "0 to 2")
    assert about["command"].startswith(f"python -m benchmarks.tasks {task} ")
    page = (tmp_path / "out" / f"{task}.md").read_text()
    assert all(f"\n| {name} |" in page for name in rows)
    with Image.open(tmp_path / "out" / f"{task}.png") as sheet:
        assert sheet.size == (34 * len(about["sheet"]) - 2, 34 * 3 - 2)
    if task == "inpainting":
        assert len(rows) == 4 + 3
        assert all(row["largest change outside"] == 0 for row in rows.values())
    if task == "super-res":
        assert rows["originals"]["sharpness"] == 1 > rows["bicubic"]["sharpness"]
        assert rows["bicubic"]["PSNR dB"] > rows["samples"]["PSNR dB"], "an untrained model samples anything"
        assert rows["regression"]["PSNR dB"] == pytest.approx(rows["bicubic"]["PSNR dB"], abs=0.5)
        options = parsed([*given, "--regression", str(untrained_regression(tmp_path / "other", factor=4))])
        with pytest.raises(UserError, match="the regression enlarges by 4, the model by 2: train another"):
            run(options, say=lambda text: None)
    if task in ("semantic", "layout"):
        assert list(rows) == ["samples", "autoencoder alone", "real scenes"]


@pytest.mark.parametrize("task", ["super-res", "inpainting"])
def test_images_of_a_folder(task: str, tmp_path: Path) -> None:
    from benchmarks.tasks.__main__ import parsed, run
    from benchmarks.tasks.given import run_of

    data = tmp_path / "data"
    data.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 36, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 36)).save(data / f"{i}.png")
        (data / f"{i}.txt").write_text(tiny.TEXTS[i % 3])
    overrides = (*MODELS[task], "about={diffusion: {data: {kind: folder}}}")
    model = saved(tmp_path / "run" / "model", *overrides)
    conditions = {"super-res": "low_resolution: {}", "inpainting": "mask: {kinds: [box]}"}[task]
    (tmp_path / "run" / "config.yaml").write_text(
        f"denoiser: {{}}\nschedule: {{kind: scaled-linear}}\nconditions: {{{conditions}}}\n"
        "data: {kind: folder, path: elsewhere, size: 32}\nheld_out: {amount: 2, by: text}\n"
    )
    assert run_of(model, None) == run_of(tmp_path / "run", None)
    assert run_of(tmp_path, None) is None
    typed = [task, str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--steps", "1", "--device", "cpu"]
    with pytest.raises(UserError, match="give the folder of its images as --data"):
        run(parsed(typed), say=lambda text: None)
    run(parsed([*typed, "--data", str(data), "--captions"]), say=lambda text: None)
    numbers = json.loads((tmp_path / "out" / f"{task}.json").read_text())
    assert numbers["about"]["images"] == 2
    assert numbers["about"]["data"] == "held-out images of data"
    rows = numbers["tables"][0]["rows"]
    assert "facts read" not in rows.get("samples", {})
    if task == "inpainting":
        assert list(rows) == ["with the caption", "without the caption", "filled smoothly", "autoencoder alone"]
        assert all(row["largest change outside"] == 0 for row in rows.values())
    if task == "inpainting":
        return
    model = saved(tmp_path / "alone", *overrides)
    run(parsed([task, str(model), *typed[2:], "--data", str(data), "--n", "4"]), say=lambda text: None)
    numbers = json.loads((tmp_path / "out" / f"{task}.json").read_text())
    assert numbers["about"]["data"] == "images, none known as held out, of data"
    assert numbers["about"]["images"] == 4


def test_fidelity_in_the_hole_alone() -> None:
    from benchmarks.tasks.inpainting import psnr_within

    images = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    hole = torch.zeros(1, 4, 4, dtype=torch.bool)
    hole[0, :2] = True
    other = images.clone()
    other[:, :, 0] = 110
    assert psnr_within(other, images, hole) == pytest.approx(10 * np.log10(255**2 / 50))
