"""Runs whose steps do not succeed write no model; frozen parts have one memory; norms are the plain formula's."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import runs
from runs import Hooks, first_model, first_run, second_run, train_first, train_second
from sfumato import checkpoint
from sfumato.autoencoder import losses
from sfumato.diffusion import objective
from sfumato.diffusion.objective import ObjectiveConfig, untrained_times
from sfumato.diffusion.schedule import CosineConfig, FlowConfig, ScaledLinearConfig, build_schedule
from sfumato.diffusion.weighting import LearnedWeighting, MinSnrWeighting, P2Weighting, UniformWeighting
from sfumato.errors import UserError
from sfumato.training import distillation
from sfumato.training.averages import ema
from sfumato.training.averages.ema import PowerAverages
from sfumato.training.optim import clip_, gradients_norm


class Spoilt:
    """Stands for a loss function; its result is no number in the calls, counted from 1, for which `when` holds."""

    def __init__(self, function, when) -> None:
        self.function, self.when, self.count = function, when, 0

    def __call__(self, *arguments, **named) -> Tensor:
        self.count += 1
        return self.function(*arguments, **named) * (float("nan") if self.when(self.count) else 1.0)


# ---- runs that come to nothing


def test_a_first_stage_without_one_good_step_is_an_error_and_no_model(tmp_path: Path) -> None:
    hooks = Hooks()
    with pytest.raises(UserError, match=r"no step of 19 succeeded.*no model is written"):
        train_first(tmp_path, first_run("train.steps=19", "loss.kl_weight=1e38", "train.save_every=5"), hooks)
    assert hooks.exported == []


def test_a_second_stage_without_one_good_step_is_an_error_and_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "loss", Spoilt(objective.loss, lambda call: True))
    hooks = Hooks()
    with pytest.raises(UserError, match=r"no step of 5 succeeded"):
        train_second(tmp_path, second_run("train.steps=5"), tmp_path / "cache", hooks)
    assert hooks.exported == []


def test_a_distillation_without_one_good_step_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = distillation.Distillation(steps=3, batch=2, channels=8, images=4, precision="float32", workers=0)
    model = first_model()
    pairs = distillation.gather_pairs(config, model, runs.Images())
    monkeypatch.setattr(losses, "reconstruction", Spoilt(losses.reconstruction, lambda call: True))
    network = distillation.build_tiny_decoder(config, distillation.tiny_decoder_config(config, model), pairs)
    with pytest.raises(UserError, match=r"no step of 3 succeeded"):
        distillation.distil(config, network, pairs, tmp_path)


def test_more_than_half_skipped_is_an_error_though_never_many_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "loss", Spoilt(objective.loss, lambda call: call % 3 != 0))
    with pytest.raises(UserError, match=r"not finite in 6 of 8 steps, more than half"):
        train_second(tmp_path, second_run("train.steps=100", "train.max_skipped=4"), tmp_path / "cache")
    assert [step for step, _ in checkpoint.saved_steps(tmp_path / "states")] == [4, 6]


# ---- what is not trained is not copied


class WithFrozen(nn.Module):
    """A trained layer and norm beside a frozen network with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.frozen = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)


def storage(module: nn.Module) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in module.state_dict(keep_vars=True).items()}


def test_frozen_parts_are_shared_with_every_average_and_trained_ones_are_not() -> None:
    network = WithFrozen()
    averages = [ema.average_of(network), *ema.power_averages_of(network, PowerAverages(widths=(0.05, 0.1)))]
    for average in averages:
        own, other = storage(network), storage(average)
        assert own.keys() == other.keys()
        for name in own:
            assert (own[name] == other[name]) == name.startswith("frozen"), name
        assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in network.trained.parameters())


def test_an_average_of_a_partly_frozen_network_follows_its_trained_part_alone() -> None:
    network = WithFrozen()
    average = ema.average_of(network)
    frozen = {name: tensor.clone() for name, tensor in network.frozen.state_dict().items()}
    before = average.trained[0].weight.clone()
    with torch.no_grad():
        network.trained[0].weight.add_(1.0)
        network.trained[1].running_mean.add_(2.0)
    ema.update(average, network, 0.75)
    torch.testing.assert_close(average.trained[0].weight, before + 0.25)
    assert torch.equal(average.trained[1].running_mean, network.trained[1].running_mean)
    for name, tensor in average.frozen.state_dict().items():
        assert torch.equal(tensor, frozen[name])


# ---- norms and clipping


def test_norm_and_clipping_are_the_formula_to_the_last_bit() -> None:
    g = torch.Generator().manual_seed(3)
    shapes = [(7, 3, 3, 3), (5,), (1,), (64, 64)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=g) * 3
    gradients = [p.grad.clone() for p in parameters if p.grad is not None]
    norm = gradients_norm(parameters)
    assert torch.equal(norm, torch.stack([each.norm() for each in gradients]).norm())
    exact = math.sqrt(sum(float(each.double().square().sum()) for each in gradients))
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    clip_(parameters, norm.item(), 0.37)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad, gradient * (0.37 / (norm.item() + 1e-6)))


# ---- weightings at an SNR of zero


@pytest.mark.parametrize("weighting", [MinSnrWeighting(), P2Weighting()])
@pytest.mark.parametrize("schedule", [ScaledLinearConfig(zero_terminal_snr=True), FlowConfig()])
def test_a_weighting_that_leaves_the_last_time_out_is_noted(weighting, schedule) -> None:
    note = untrained_times(ObjectiveConfig(prediction="v", weighting=weighting), build_schedule(schedule))
    assert note is not None
    assert f"objective.weighting.kind {weighting.kind} is 0 at t = 1" in note


def test_min_snr_of_v_falls_below_a_hundredth_where_the_formula_does() -> None:
    """On the straight path SNR = ((1 - t) / t)² and v's weight is min(SNR, 5) t² / ((1 - t)² + t²)²."""
    note = untrained_times(ObjectiveConfig(prediction="v", weighting=MinSnrWeighting()), build_schedule(FlowConfig()))
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    weights = (((1 - t) / t) ** 2).clamp(max=5) * t**2 / ((1 - t) ** 2 + t**2) ** 2
    first = t[(weights < 0.01 * weights.max()) & (t > 0.5)].min().item()
    assert note is not None
    assert f"from t = {first:g} on" in note


def test_a_weighting_that_trains_the_last_time_is_not_noted() -> None:
    terminal = build_schedule(ScaledLinearConfig(zero_terminal_snr=True))
    for weighting in (UniformWeighting(), LearnedWeighting()):
        assert untrained_times(ObjectiveConfig(prediction="v", weighting=weighting), terminal) is None
    for schedule in (CosineConfig(), ScaledLinearConfig()):
        config = ObjectiveConfig(prediction="v", weighting=MinSnrWeighting())
        assert untrained_times(config, build_schedule(schedule)) is None


def test_a_run_reports_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = second_run(
        "train.steps=2",
        "objective={prediction: v, weighting: {kind: min-snr}}",
        "schedule={kind: scaled-linear, zero_terminal_snr: true}",
    )
    train_second(tmp_path, config, tmp_path / "cache")
    assert capsys.readouterr().err.count("is 0 at t = 1, where this schedule's SNR is 0") == 1
