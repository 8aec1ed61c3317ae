"""A study of seconds on the toy world: end to end, stopped and resumed, and the conclusions from its numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from command_line import Command
from sfumato.baselines.model import load_code_model
from sfumato.cli.study import fitting, numbers, seconds
from sfumato.cli.study_data import data_config
from sfumato.config import parse
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.errors import UserError
from sfumato.studies import arm as arm_module
from sfumato.studies.evaluator import Score
from sfumato.studies.plan import Method, StudyConfig, arms, first_run, latent_of, second_run
from sfumato.studies.result import (
    ArmResult,
    CurvePoint,
    SamplingResult,
    comparison,
    load_result,
    recommendation,
    standings,
)
from sfumato.studies.rules import count, count_codes, denoiser_for, transformer_for
from sfumato.studies.step_cost import StepCost, steps

STUDY = ("study", "downsampling", "--data", "toy", "--size", 32, "--length", 40, "--budget", "1s", "--factors", "1,8")
STUDY += ("--parameters", 30000, "--channels", 8, "--samples", 4, "--sampling-steps", "1,2", "--feature-size", 32)


class Killed(BaseException):
    """Passes through every `except Exception`, as the end of a process would."""


def config(**changes: object) -> StudyConfig:
    return parse({"data": {"kind": "toy", "size": 64}, "budget": 60, **changes}, StudyConfig, "study")


def test_a_study_ends_in_a_page_and_goes_on_where_it_was_killed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = {
        Method(f): StepCost(1.0, 10, 1.0, 10, 0.1) for f in (1, 8)
    }  # three steps for each part, whatever this machine does
    monkeypatch.setattr("sfumato.studies.run.step_costs", lambda *_: fast)
    monkeypatch.setattr("sfumato.cli.study.seconds", lambda text: 4.0)

    def killed(*_: object) -> list[SamplingResult]:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(arm_module, "_ceiling", killed)
        with pytest.raises(Killed):
            command(*STUDY, "--out", tmp_path)
    first = (tmp_path / "f1-seed0" / "result.json").read_text()
    trained_weights = (tmp_path / "f8-seed0" / "diffusion" / "model" / "denoiser.safetensors").read_bytes()
    assert not (tmp_path / "f8-seed0" / "result.json").exists()
    assert "1 of 2 training runs" in (tmp_path / "study.html").read_text()

    done = command(*STUDY, "--out", tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "f1-seed0" / "result.json").read_text() == first, "what is finished stays as it is"
    assert (tmp_path / "f8-seed0" / "diffusion" / "model" / "denoiser.safetensors").read_bytes() == trained_weights
    page = (tmp_path / "study.html").read_text()
    assert "training runs are finished" not in page
    assert page.count("<img") == 3, "samples of both, reconstructions of the one with a first stage"
    assert "http" not in page.replace("http-equiv", ""), "the page fetches nothing"
    pixels, latent = (load_result(tmp_path / f"f{f}-seed0" / "result.json") for f in (1, 8))
    assert (pixels.ceiling, pixels.first_steps, pixels.second_steps) == (None, 0, 4)
    assert (latent.first_steps, latent.second_steps, latent.latent) == (1, 3, (4, 4, 4))
    assert [d.steps for d in latent.sampling] == [1, 2]
    assert latent.curve[-1].step == 3
    assert latent.curve[-1].seconds == pytest.approx(latent.first_seconds + latent.second_seconds, rel=0.01)
    assert not (tmp_path / "f8-seed0" / "cache").exists()

    more = command(*STUDY, "--seeds", 2, "--out", tmp_path)
    assert more.code == 0, more.err
    assert (tmp_path / "f1-seed0" / "result.json").read_text() == first, "another seed adds to what is there"
    assert load_result(tmp_path / "f8-seed1" / "result.json").seed == 1
    fewer = command(*STUDY, "--seeds", 1, "--out", tmp_path)
    assert fewer.code == 2
    assert "a study with seeds = 2, not 1" in fewer.err


def test_the_baselines_train_beside_latent_diffusion(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = (Method(8), Method(1), Method(8, codes=True))
    monkeypatch.setattr(
        "sfumato.studies.run.step_costs", lambda *_: {method: StepCost(1.0, 10, 1.0, 10, 0.1) for method in methods}
    )
    monkeypatch.setattr("sfumato.cli.study.seconds", lambda text: 4.0)
    arguments = [*STUDY, "--factor", 8, "--codebook", 16, "--seeds", 1, "--out", tmp_path]
    arguments[1] = "baselines"
    del arguments[arguments.index("--factors") : arguments.index("--factors") + 2]
    done = command(*arguments)
    assert done.code == 0, done.err
    codes = load_result(tmp_path / "codes-8-seed0" / "result.json")
    assert codes.method == methods[2]
    assert (codes.first_steps, codes.second_steps, codes.latent) == (1, 3, (4, 4, 4))
    assert [d.steps for d in codes.sampling] == [16], "an image takes as many calls as it has codes"
    assert codes.curve[-1].step == 3
    model = load_code_model(tmp_path / "codes-8-seed0" / "diffusion")
    assert model.first.config.autoencoder.bottleneck.kind == "vq"
    page = (tmp_path / "study.html").read_text()
    for name in ("latent diffusion, f = 8", "pixel diffusion", "transformer over codes, f = 8"):
        assert f"samples of {name}" in page
    assert page.count("<img") == 5, "samples of three, reconstructions of two"
    again = command(*arguments)
    assert again.code == 0, again.err
    assert "step" not in again.err.replace("steps", ""), "a finished study trains nothing again"
    arguments[arguments.index("--factor") + 1] = 1
    assert "is pixel space, which is trained anyway" in command(*arguments).err


def test_methods_are_compared_by_name() -> None:
    results = [result(4, 0.1, 10), result(1, 0.3, 1), replace(result(4, 0.2, 2), codes=True)]
    headline, summary = comparison(results)
    assert headline == "Latent diffusion, f = 4 comes closest to this data"
    assert "transformer over codes, f = 4 0.2000, sampling 0.2 times as fast" in summary
    tied = [results[0], replace(results[2], sampling=results[0].sampling)]
    assert "are indistinguishable" in comparison(tied)[0]
    with pytest.raises(UserError, match="factor 1 has no codes"):
        config(factors=[1], codes=[1])


def test_the_transformer_has_as_many_parameters_as_the_denoisers() -> None:
    found = count_codes(transformer_for((16, 16), 512, 1_500_000), 512, (16, 16))
    assert found == pytest.approx(1_500_000, rel=0.15)


def test_all_denoisers_have_as_many_parameters() -> None:
    for factor in (1, 2, 4, 8, 16, 32):
        latent = latent_of(config(), Method(factor))
        found = count(denoiser_for(latent, 1_500_000), latent[0])
        assert found == pytest.approx(1_500_000, rel=0.12), factor


def test_the_networks_of_an_arm_fit_its_images() -> None:
    study = config(factors=[1, 4, 16])
    for arm in arms(study):
        run = first_run(study, arm, 10)
        assert (run is None) == (arm.method.factor == 1)
        assert run is None or run.model.factor == arm.method.factor
        second = second_run(study, arm, latent_of(study, arm.method), 10)
        assert latent_of(study, arm.method)[1] % second.denoiser.factor == 0
        assert second.train.seed == arm.seed


def test_the_budget_is_spent_alike() -> None:
    known = {
        Method(1): StepCost(0, 0, 2.0, 200, 0),
        Method(4): StepCost(0.5, 40, 0.25, 20, 0.1),
        Method(8): StepCost(0.5, 60, 0.1, 5, 0.1),
    }
    study = config(factors=[1, 4, 8], budget=100, first_share=0.25)
    for factor in (1, 4, 8):
        counts, cost = steps(study, known, Method(factor)), known[Method(factor)]
        assert counts.first * cost.first_seconds + counts.second * cost.second_seconds == pytest.approx(100, rel=0.02)
    study = config(factors=[1, 4, 8], budget=100, first_share=0.25, equal="compute")
    for factor in (1, 4, 8):
        counts, cost = steps(study, known, Method(factor)), known[Method(factor)]
        operations = counts.first * cost.first_operations + counts.second * cost.second_operations
        assert operations == pytest.approx(100 * 20 / 0.25, rel=0.03), "the reference arm's rate is 80 a second"


def result(factor: int, kernel: float, rate: float, seed: int = 0, std: float = 0.01) -> ArmResult:
    sampling = SamplingResult(10, rate, Score(kernel, std, 1.0))
    latent = (3, 64 // factor, 64 // factor)
    return ArmResult(
        factor,
        seed,
        latent,
        0,
        1,
        0,
        1,
        0.0,
        1.0,
        0.0,
        1,
        (0.0,),
        (1.0,),
        (CurvePoint(1.0, 1, kernel),),
        (sampling,),
        None,
    )


def test_the_fastest_of_the_indistinguishable_is_recommended(tmp_path: Path) -> None:
    results = [result(1, 0.9, 1), result(4, 0.100, 10), result(8, 0.105, 30), result(16, 0.3, 90)]
    headline, summary = recommendation(results)
    assert headline == "f = 8 suits this data"
    assert "f = 4 came closest" in summary
    assert "f = 8 is indistinguishable from it" in summary
    assert "3.0 times as fast" in summary
    seeds = [result(4, 0.10, 10), result(4, 0.102, 10, seed=1), result(8, 0.11, 30), result(8, 0.112, 30, seed=1)]
    assert recommendation(seeds)[0] == "f = 4 suits this data"
    assert [s.method.factor for s in standings(results)] == [4, 8, 16, 1]
    results[1].save(tmp_path / "r.json")
    assert load_result(tmp_path / "r.json") == results[1]
    whole = replace(results[1], seed=3)
    assert json.loads((tmp_path / "r.json").read_text())["seed"] != whole.seed


def test_bad_options() -> None:
    assert [seconds(t) for t in ("90s", "30m", "2h", "1d")] == [90, 1800, 7200, 86400]
    for text in ("30", "m", "-3m", "0s"):
        with pytest.raises(UserError, match=r"--budget .* such as 90s"):
            seconds(text)
    with pytest.raises(UserError, match="--factors"):
        numbers("--factors", "1,x")
    assert fitting((64, 96)) == [1, 2, 4, 8, 16, 32]
    assert fitting((32, 32)) == [1, 2, 4, 8, 16]
    with pytest.raises(UserError, match=r"factor 32 leaves no latent of 2x2 of images of 32x32"):
        config(data={"kind": "toy", "size": 32}, factors=[1, 32])
    with pytest.raises(UserError, match="factor 3 is not one of"):
        config(factors=[3])


def test_samples_score_worse_than_the_data(tmp_path: Path) -> None:
    from sfumato.evaluation.features import efficientnet_lite0
    from sfumato.studies.evaluator import Evaluator

    data = config(data={"kind": "toy", "size": 32, "length": 24}, factors=[1]).data.build()  # type: ignore[union-attr]
    evaluator = Evaluator.of(efficientnet_lite0(32), data, tmp_path / "reference.safetensors")
    real = torch.stack([data[i].image for i in range(24)])
    noise = torch.randint(0, 256, real.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    again = Evaluator.of(efficientnet_lite0(32), data, tmp_path / "reference.safetensors")
    assert torch.equal(evaluator.reference, again.reference)
    assert evaluator(noise).kernel > 0.008
    assert evaluator(real).kernel < 0.002


def test_the_data_of_a_recipe_can_be_studied(tmp_path: Path, command: Command) -> None:
    world = data_config("zoo:toy/small-text", None, 10_000)
    assert isinstance(world, ToyWorldConfig)
    assert (world.size, world.length, world.vocabulary.textures) == (32, 10_000, ("plain",))
    assert data_config("zoo:toy/small-text", (16, 24), 1).size == (16, 24)
    with pytest.raises(UserError, match="names no images"):
        data_config("zoo:emoji/text", None, 1)
    done = command("study", "downsampling", "--data", "zoo:toy/none", "--out", tmp_path / "study")
    assert done.code == 2
    assert "is not in the zoo" in done.err
