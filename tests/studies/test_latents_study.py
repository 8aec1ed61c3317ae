"""A study of latent spaces: its statistics in closed form, its trainings, and a run of seconds that is killed."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from command_line import Command
from sfumato.config import parse, to_yaml
from sfumato.errors import UserError
from sfumato.evaluation.features import FeatureNetwork
from sfumato.model_folder import load
from sfumato.studies.latents import second as second_module
from sfumato.studies.latents.first import latent_sheet
from sfumato.studies.latents.plan import LatentsStudyConfig, decoder_run, first_run, second_run
from sfumato.studies.latents.result import FirstResult, ScorePoint, SecondResult, load_first, load_second
from sfumato.studies.latents.run import first_home, may_grow
from sfumato.studies.latents.spaces import SPACES
from sfumato.studies.latents.statistics import (
    Standing,
    by_chance,
    conclusion,
    predictions,
    ranks,
    spearman,
    standings,
    time_to,
)

STUDY = ("study", "latents", "--size", 32, "--data", "toy", "--length", 40, "--first-steps", 2, "--steps", 2)
STUDY += ("--channels", 8, "--parameters", 30000, "--samples", 2, "--sampling-steps", 1, "--points", 1, "--seeds", 1)
STUDY += ("--measured", 32, "--batch", 8)


class Killed(BaseException):
    """Passes through every `except Exception`, as the end of a process would."""


def config(**changes: object) -> LatentsStudyConfig:
    return parse({"data": {"kind": "toy", "size": 32}, **changes}, LatentsStudyConfig, "study")


# ---- statistics


def second(space: str, seed: int, score: float, curve: tuple[ScorePoint, ...] = ()) -> SecondResult:
    return SecondResult(space, seed, 100, 60.0, 1, score, {}, curve or (ScorePoint(100, 60.0, score),))


def first(space: str, psnr: float = 28.0, **metrics: float) -> FirstResult:
    return FirstResult(space, 10, 60.0, psnr, 28.0, metrics, {"VIV": "lower", "PSNR": "higher"})


def test_ranks_and_their_correlation_are_those_of_the_textbook() -> None:
    assert ranks([10.0, 30.0, 20.0, 20.0]) == [1, 4, 2.5, 2.5]
    a, b = ranks([1.0, 2.0, 3.0, 4.0, 5.0]), ranks([5.0, 6.0, 7.0, 8.0, 7.5])
    squared = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    assert spearman(a, b) == pytest.approx(1 - 6 * squared / (5 * 24))  # the formula without ties
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_a_perfect_order_of_four_is_chance_once_in_24() -> None:
    assert by_chance([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1 / 24)
    assert by_chance([1, 2, 3, 4], [4, 3, 2, 1]) == 1
    counted = [spearman([1, 2, 3, 4], order) for order in itertools.permutations([1, 2, 3, 4])]
    assert by_chance([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(sum(1 for c in counted if c and c >= 0.8 - 1e-9) / 24)
    assert by_chance([1.0] * 9, list(range(9))) is None


def test_the_time_to_a_score_lies_between_the_points() -> None:
    curve = [ScorePoint(10, 1.0, 0.2), ScorePoint(20, 2.0, 0.4), ScorePoint(40, 4.0, 0.6)]
    assert time_to(curve, 0.5, "higher") == pytest.approx(30 / 40, rel=1e-4)
    assert time_to(curve, 0.1, "higher") == pytest.approx(10 / 40)
    assert time_to(curve, 0.7, "higher") is None
    assert time_to([ScorePoint(10, 1.0, 0.35866)], 0.35866013, "higher") == 1, "the log rounds"
    falling = [ScorePoint(p.step, p.seconds, -p.score) for p in curve]
    assert time_to(falling, -0.5, "lower") == pytest.approx(30 / 40, rel=1e-4)


def test_spaces_are_ordered_by_their_mean_score() -> None:
    results = [second("plain", 0, 0.6), second("plain", 1, 0.62), second("noise", 0, 0.7), second("noise", 1, 0.66)]
    noise, plain = standings(results, "higher")
    assert (noise.space, plain.space, plain.time) == ("noise", "plain", 1)
    assert noise.score == pytest.approx(0.68)
    assert noise.spread == pytest.approx(0.04 / math.sqrt(2))
    assert [one.space for one in standings(results, "lower")] == ["plain", "noise"]


def test_a_number_that_orders_the_spaces_predicts_them() -> None:
    ranked = [Standing("equivariance", 0.7, 0.0, 3, 0.5), Standing("noise", 0.65, 0.0, 3, 0.7)]
    ranked.append(Standing("plain", 0.6, 0.0, 3, 1.0))
    firsts = [
        first("plain", VIV=0.9, PSNR=29.0),
        first("equivariance", VIV=0.7, PSNR=27.0),
        first("noise", VIV=0.8, PSNR=28.0),
    ]
    viv, quality = predictions(firsts, ranked, "higher")
    assert (viv.name, viv.correlation, viv.chance) == ("VIV", pytest.approx(1), pytest.approx(1 / 6))
    assert (quality.name, quality.correlation) == ("PSNR", pytest.approx(-1))
    assert predictions(firsts, ranked, "lower")[0].name == "PSNR"
    assert predictions(firsts[:2], ranked[:2], "higher") == []


def test_the_conclusion_says_what_is_within_the_spread_and_what_is_not_equal() -> None:
    firsts = {"plain": first("plain"), "noise": first("noise", 27.0)}
    near = [Standing("noise", 0.61, 0.02, 3, 0.9), Standing("plain", 0.60, 0.01, 3, 1.0)]
    headline, summary = conclusion(near, firsts, "{:.0%}".format)
    assert headline == "Noise is best, but by less than the spread between seeds"
    expected = "Its mean score is 61%, the plain one's 60%; seeds of either spread by at most 2%."
    assert summary == f"{expected} Not at equal PSNR: noise."
    far = [Standing("noise", 0.7, 0.02, 3, 0.5), near[1]]
    headline, summary = conclusion(far, {"plain": first("plain")}, "{:.0%}".format)
    assert headline == "Noise is the easiest to learn"
    assert "after 50% of the training" in summary
    assert conclusion(near[::-1], firsts, "{:.0%}".format)[0] == "No latent space is better than the plain one"


# ---- the plan


def test_first_stages_differ_in_nothing_but_their_regulariser() -> None:
    study = config()
    plain = first_run(study, SPACES["plain"], 100).model_dump()
    for name in study.spaces[1:]:
        space = SPACES[name]
        other = first_run(study, space, 100).model_dump()
        assert {key for key in plain["loss"] if plain["loss"][key] != other["loss"][key]} == set(space.loss)
        assert {key for key in plain["model"] if plain["model"][key] != other["model"][key]} == set(space.model)
        assert all(other[key] == plain[key] for key in plain if key not in ("loss", "model"))


def test_the_decoder_alone_is_trained_without_noise(tmp_path: Path) -> None:
    run = decoder_run(config(), SPACES["noise"], tmp_path, 25, 100)
    assert (run.train.part, run.train.steps, run.start) == ("decoder", 25, tmp_path)
    assert run.loss.latent_noise.gamma == 0
    assert (
        run.train.optimiser.warmup_steps == first_run(config(), SPACES["noise"], 75, 100).train.optimiser.warmup_steps
    )


def test_second_stages_are_scored_at_equal_distances() -> None:
    run = second_run(config(points=4), 2, 953)
    assert (run.train.preview_every, run.train.seed) == (239, 2)
    assert run.conditioner.kind == "text"
    folder = parse({"data": {"kind": "folder", "path": "x", "size": 32}}, LatentsStudyConfig, "study")
    assert second_run(folder, 0, 10).conditioner.kind == "none"


def test_bad_settings() -> None:
    for spaces, message in (
        (["plain", "none"], "'none' is not one of plain,"),
        (["noise", "equivariance"], "give plain and at least one"),
        (["plain"], "give plain and at least one"),
        (["plain", "noise", "noise"], "contain one twice"),
    ):
        with pytest.raises(UserError, match=message):
            config(spaces=spaces)
    with pytest.raises(UserError, match="factor 16 leaves no latent of 4x4 of images of 32x32"):
        config(factor=16)
    with pytest.raises(UserError, match="factor 3 is not one of"):
        config(factor=3)
    assert may_grow("seeds", 1, 3)
    assert may_grow("spaces", ("plain", "noise"), ("plain", "equivariance", "noise"))
    assert not may_grow("spaces", ("plain", "noise"), ("plain", "equivariance"))
    assert not may_grow("minutes", 1.0, 2.0)


# ---- a study


def test_a_study_goes_on_where_it_was_killed(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, spaces = tmp_path / "study", ("--spaces", "plain,noise")
    tolerance = "sfumato.studies.latents.first.TOLERANCE"
    monkeypatch.setattr(tolerance, -100.0)  # no first stage is good enough: all train on to the longest

    def killed(*_: object) -> object:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(second_module, "_curve", killed)
        with pytest.raises(Killed):
            command(*STUDY, *spaces, "--longest", 1.5, "--out", out)
    assert [each["steps"] for each in json.loads((out / "first" / "noise" / "rounds.json").read_text())] == [2, 3]
    trained = (out / "first" / "noise" / "decoder" / "model" / "autoencoder.safetensors").read_bytes()
    weights = (out / "plain-seed0" / "diffusion" / "model" / "denoiser.safetensors").read_bytes()
    done = command(*STUDY, *spaces, "--longest", 1.5, "--out", out)
    assert done.code == 0, done.err
    assert (out / "first" / "noise" / "decoder" / "model" / "autoencoder.safetensors").read_bytes() == trained
    assert (out / "plain-seed0" / "diffusion" / "model" / "denoiser.safetensors").read_bytes() == weights

    plain, noise = (load_first(out / "first" / name / "result.json") for name in ("plain", "noise"))
    assert (plain.steps, noise.steps) == (3, 3)
    assert plain.better["VIV"] == "lower"
    assert plain.metrics["PSNR"] == pytest.approx(plain.psnr, abs=1e-4)
    result = load_second(out / "noise-seed0" / "result.json")
    assert (result.steps, [point.step for point in result.curve]) == (2, [2])
    assert result.score == result.details["facts"] == pytest.approx(result.curve[-1].score, rel=1e-5)
    page = (out / "study.html").read_text()
    assert "second stages are finished" not in page
    assert page.count("<img") == 6, "samples, reconstructions and latents of both"
    assert "http" not in page.replace("http-equiv", "")
    assert not (out / "cache").exists()

    wrong = command(*STUDY, *spaces, "--first-stages", out, "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert "contains first stages with longest = 1.5, not 2.0" in wrong.err
    assert not (tmp_path / "wrong").exists()
    changed = command(*STUDY, *spaces, "--out", out)
    assert "contains a study with longest = 1.5, not 2.0" in changed.err


def test_latents_are_shown_beside_their_images() -> None:
    model = load("zoo:toy")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = latent_sheet(model, images)
    C = model.latent_shape[0]
    assert sheet.shape == (3, 2 * 34 - 2, (1 + C) * 34 - 2)
    raw = model.encode(images)
    std, mean = torch.std_mean(raw[:, 1], dim=(0, 1, 2))
    value = ((raw[1, 1, 2, 3] - mean) / std / 3).clamp(-1, 1)
    assert sheet[0, 34 + 4 * 2, 2 * 34 + 4 * 3].item() == pytest.approx((value.item() + 1) * 127.5, abs=0.51)


def test_first_stages_of_another_study_are_used_if_they_are_the_same(tmp_path: Path) -> None:
    study = config()
    with pytest.raises(UserError, match="is not the folder of a study of latent spaces"):
        first_home(study, tmp_path / "out", tmp_path)
    (tmp_path / "study.yaml").write_text(to_yaml(study))
    longer = config(minutes=9.0, seeds=1, batch=8)
    assert first_home(longer, tmp_path / "out", tmp_path) == tmp_path / "first"
    assert first_home(longer, tmp_path / "out", None) == tmp_path / "out" / "first"
    with pytest.raises(UserError, match=r"contains first stages with channels = 16, not 24: give the same settings"):
        first_home(config(channels=24), tmp_path / "out", tmp_path)


def test_a_missing_feature_network_is_refused_before_anything_is_trained(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str, weights: str | None) -> FeatureNetwork:
        raise UserError(f"{name} is not installed")

    monkeypatch.setattr("sfumato.training.alignment.load_network", missing)
    done = command(*STUDY, "--spaces", "plain,aligned", "--out", tmp_path / "study")
    assert done.code == 2
    assert "efficientnet-lite0@128 is not installed" in done.err
    assert not (tmp_path / "study").exists()
