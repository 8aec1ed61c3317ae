"""A study of joint training on the toy world: end to end, killed and resumed, and the conclusions from its numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from command_line import Command
from sfumato.config import parse, read_source
from sfumato.errors import UserError
from sfumato.studies.joint.arm import collapsed, health_curve
from sfumato.studies.joint.page import render
from sfumato.studies.joint.plan import WAYS, Arm, JointStudyConfig, arms, coupling_of, first_run, joint_run, second_run
from sfumato.studies.joint.result import HealthPoint, JointResult, conclusion, load_result, standings
from sfumato.studies.joint.scoring import Scored, Scorer

STUDY = ("study", "joint", "zoo:toy/joint", "data.length=12", "train.batch=2", "train.draws=2", "model.channels=8")
STUDY += ("train.preview_images=4", "denoiser.attention_factors=[2]", "--ways", "two-stage,prior", "--seeds", 1)
STUDY += ("--samples", 3, "--sampling-steps", 1, "--every", 1, "--minutes", 0.001, "--precision", "float32")


def config(**changes: object) -> JointStudyConfig:
    return parse({"run": read_source("zoo:toy/joint"), **changes}, JointStudyConfig, "study")


class Killed(BaseException):
    """Passes through every `except Exception`, as the end of a process would."""


def test_a_study_ends_in_a_page_and_goes_on_where_it_was_killed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = Scorer.__call__

    def killed(self: Scorer, model: object) -> Scored:
        if (tmp_path / "prior-seed0" / "joint" / "model").exists():
            raise Killed
        return scored(self, model)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "__call__", killed)
        with pytest.raises(Killed):
            command(*STUDY, "--out", tmp_path)
    first = (tmp_path / "two-stage-seed0" / "result.json").read_text()
    weights = (tmp_path / "prior-seed0" / "joint" / "model" / "denoiser.safetensors").read_bytes()
    assert "1 of 2 training runs" in (tmp_path / "study.html").read_text()

    done = command(*STUDY, "--out", tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "two-stage-seed0" / "result.json").read_text() == first, "what is finished stays as it is"
    assert (tmp_path / "prior-seed0" / "joint" / "model" / "denoiser.safetensors").read_bytes() == weights
    both, prior = (load_result(tmp_path / f"{way}-seed0" / "result.json") for way in ("two-stage", "prior"))
    assert both.second_steps >= 1
    assert prior.second_steps == 0
    for result in (both, prior):
        assert {"facts", "shape", "colour"} <= result.facts.keys()
        assert result.curve[-1].seconds <= 1.001 * result.seconds  # the log is rounded
        assert 0 < result.curve[-1].rank <= 1
    assert not (tmp_path / "two-stage-seed0" / "cache").exists()
    page = (tmp_path / "study.html").read_text()
    assert "training runs are finished" not in page
    assert page.count("<img") == 4
    assert "http" not in page.replace("http-equiv", ""), "the page fetches nothing"
    assert yaml.safe_load((tmp_path / "study.yaml").read_text())["ways"] == ["two-stage", "prior"]
    other = command(*STUDY, "train.denoiser.learning_rate=1", "--out", tmp_path)
    assert other.code == 2
    assert "a study with run.train.denoiser.learning_rate = 0.004, not 1.0" in other.err


def test_every_way_has_the_same_minutes_and_networks() -> None:
    study = config(minutes=4, first_share=0.25, first_batch=5, seeds=2)
    assert [arm.name for arm in arms(study)][:6] == [*(f"{way}-seed0" for way in WAYS), "two-stage-seed1"]
    first, second = first_run(study, Arm("two-stage", 3)), second_run(study, Arm("two-stage", 3), 2.5)
    assert (first.train.minutes, first.train.batch, first.train.seed) == (1.0, 5, 3)
    assert (second.train.minutes, second.train.batch, second.train.seed) == (2.5, 64, 3)
    for way in WAYS[1:]:
        run = joint_run(study, Arm(way, 3))
        assert (run.coupling.kind, run.train.minutes, run.train.seed) == (way, 4.0, 3)
        assert (run.model, run.denoiser, run.data) == (first.model, second.denoiser, first.data)


def test_a_configured_coupling_is_that_of_the_way_of_its_kind() -> None:
    raw = {**read_source("zoo:toy/joint"), "coupling": {"kind": "prior", "weight": 0.5}}
    study = config(run=raw)
    assert coupling_of(study, "prior").model_dump()["weight"] == 0.5
    assert coupling_of(study, "naive").model_dump() == {"kind": "naive", "weight": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ways": ["naive", "naive"]}, "contain one twice"),
        ({"ways": ["else"]}, "ways"),
        ({"minutes": 0}, "minutes"),
        ({"run": {**read_source("zoo:toy/joint"), "objective": {"prediction": "flow"}}}, "set objective.latents=mean"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as refused:
        config(**changes)
    assert said in str(refused.value)


POINT = HealthPoint(30.0, 20.0, 1.0, 0.4)
RESULT = JointResult("two-stage", 0, 180.0, 900, 400, 24.0, 0.5, 0.01, {"facts": 0.8, "shape": 0.7}, (), (POINT,))


def test_the_conclusion_compares_with_one_stage_after_the_other() -> None:
    results = [RESULT, replace(RESULT, seed=1, kernel=0.6)]
    results += [replace(RESULT, way="prior", seed=seed, kernel=kernel) for seed, kernel in enumerate((0.55, 0.6))]
    results += [replace(RESULT, way="naive", seed=seed, kernel=2.0, collapsed=("spread",)) for seed in range(2)]
    results += [replace(RESULT, way="anchored", seed=seed, kernel=0.1) for seed in range(2)]
    text = conclusion(results)
    assert text.startswith("One stage after the other has a kernel distance of 0.5500. prior: kernel distance 0.5750, ")
    assert "prior: kernel distance 0.5750, no clear difference with these seeds" in text
    assert "naive: kernel distance 2.0000, worse than with one after the other; the latents collapsed in 2 of 2" in text
    assert "anchored: kernel distance 0.1000, better than" in text
    ranked = {one.way: one for one in standings(results)}
    assert ranked["two-stage"].kernel_spread == pytest.approx(0.1)
    assert (ranked["naive"].collapsed, ranked["prior"].facts) == (2, 0.8)


def test_samples_that_are_not_finite_are_said_so(tmp_path: Path) -> None:
    broken = replace(RESULT, way="naive", kernel=None, kernel_std=None, facts={})
    assert "naive: its samples are not finite" in conclusion([RESULT, broken])
    assert standings([broken])[0].kernel is None


def test_a_result_is_read_back_as_it_was(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == RESULT


def test_the_curve_and_the_warnings_are_read_from_the_log() -> None:
    step: list[dict[str, object]] = [{"step": n, "seconds": 2.0 * n, "loss": 1.0} for n in (1, 2, 3)]
    health: list[dict[str, object]] = [
        {"step": n, "psnr": psnr, "latent_std": [spread, spread], "effective_rank": 0.5}
        for n, psnr, spread in ((1, 10.0, 1.0), (2, 20.0, 0.5), (3, 16.0, 0.05))
    ]
    lines = [*step, *health]
    assert health_curve(lines)[1] == HealthPoint(4.0, 20.0, 0.5, 0.5)
    assert collapsed(lines, normalised=False) == ("spread", "psnr")
    assert collapsed(lines[:5], normalised=False) == ()


def test_the_page_shows_an_unfinished_study(tmp_path: Path) -> None:
    study = config()
    (tmp_path / "two-stage-seed0").mkdir()
    page = render(study, [RESULT], tmp_path, "a network", "a machine", "sfumato study joint")
    assert "1 of 15 training runs are finished" in page
    assert "The samples are not finite" in page
