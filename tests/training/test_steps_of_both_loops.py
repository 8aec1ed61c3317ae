"""The steps of both loops: NaNs, accumulation, clipping, averages, precision; in the loops themselves."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from runs import (
    Hooks,
    Images,
    assert_same_tensors,
    assert_same_up_to_rounding,
    first_run,
    logged,
    saved,
    second_run,
    train_first,
    train_second,
)
from sfumato.autoencoder import losses
from sfumato.autoencoder.model import Autoencoder
from sfumato.data.dataset import Example
from sfumato.denoiser.blocks import Block, BlockInputs
from sfumato.diffusion import objective
from sfumato.errors import UserError
from sfumato.rng import generator, seeded
from sfumato.training.averages import ema
from sfumato.training.log import read_lines
from sfumato.training.optim import OptimiserConfig, build_optimiser, clip_, gradients_norm, learning_rate
from sfumato.training.settings import LoopSettings
from sfumato.training.state import TrainState
from sfumato.training.steps import progress

GAN = "loss.adversarial={weight: 0.5, start: 1, channels: 16, layers: 1, norm: group}"


# ---- steps that are not finite


class Poison:
    """Stands for a loss function and spoils its result in some calls, counted from 1."""

    def __init__(self, function, calls: range) -> None:
        self.function, self.calls, self.count = function, calls, 0

    def __call__(self, *arguments, **named) -> Tensor:
        self.count += 1
        result = self.function(*arguments, **named)
        return result * float("nan") if self.count in self.calls else result


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objective, "loss", Poison(objective.loss, range(3, 5)))
    config = second_run("train.save_every=1", "train.steps=2")
    train_second(tmp_path, config, tmp_path / "cache")
    before, _ = saved(tmp_path)
    state = train_second(tmp_path, second_run("train.save_every=1", "train.steps=4"), tmp_path / "cache")
    assert_same_tensors(before, saved(tmp_path)[0])
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 2, 2)
    state = train_second(tmp_path, second_run("train.steps=5"), tmp_path / "cache")
    assert (state.step, state.skipped, state.skipped_in_a_row) == (5, 2, 0)
    lines = [line for line in logged(tmp_path) if "gradient_norm" in line or "skipped" in line]
    assert [line["skipped"] for line in lines] == [0, 0, 1, 2, 2]
    assert ["loss" in line for line in lines] == [True, True, False, False, True], "a NaN has no place in JSON"
    assert all(math.isfinite(line["loss_smoothed"]) for line in lines)


@pytest.mark.parametrize("loss", ["reconstruction", "discriminator_loss"])
def test_a_nan_in_either_loss_spares_both_networks(loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, loss, Poison(getattr(losses, loss), range(3, 4)))
    train_first(tmp_path, first_run(GAN, "train.steps=3", "train.save_every=1", "loss.adversarial.lecam=0.1"))
    before, _ = saved(tmp_path)
    state = train_first(tmp_path, first_run(GAN, "train.steps=4", "train.save_every=1", "loss.adversarial.lecam=0.1"))
    skipped_at = 3 if loss == "reconstruction" else 4  # the discriminator's first step is step number 1
    assert state.skipped == 1
    after, numbers = saved(tmp_path)
    assert all(bool(torch.isfinite(value.double()).all()) for value in after.values())
    assert all(math.isfinite(v) for v in numbers["notes"]["logits"])
    if skipped_at == 4:
        assert_same_tensors(before, after)


def test_latents_that_are_not_finite_do_not_enter_the_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Autoencoder.encode
    poison = Poison(lambda image: image, range(3, 4))
    monkeypatch.setattr(Autoencoder, "encode", lambda self, image, noise=None: encode(self, poison(image), noise))
    config = first_run("model.bottleneck={kind: vq, codes: 24, revive_every: 1}", "train.steps=4")
    state = train_first(tmp_path, config)
    assert state.skipped == 1
    codebook = saved(tmp_path)[0]["module.autoencoder.quantize.embedding.weight"]
    assert bool(torch.isfinite(codebook).all())


def test_many_in_a_row_stop_the_run_and_leave_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = second_run("train.steps=9", "train.save_every=3", "train.max_skipped=4")
    with monkeypatch.context() as patch:
        patch.setattr(objective, "loss", Poison(objective.loss, range(3, 99)))
        with pytest.raises(UserError, match=r"not finite in 4 steps in a row, up to step 6.*learning_rate"):
            train_second(tmp_path, config, tmp_path / "cache")
    tensors, numbers = saved(tmp_path)
    assert numbers["step"] == 3
    assert all(bool(torch.isfinite(value.double()).all()) for value in tensors.values())
    cured = second_run(
        "train.steps=5", "train.save_every=3", "train.max_skipped=4", "train.optimiser.learning_rate=1e-4"
    )
    state = train_second(tmp_path, cured, tmp_path / "cache")
    assert (state.step, state.skipped, state.skipped_in_a_row) == (5, 1, 0), "as announced, it goes on"


# ---- accumulation, precision


GENTLE = ["train.optimiser.warmup_steps=0", "train.optimiser.learning_rate=1e-4", "train.steps=3"]


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.output_variance=true", GAN, "loss.adversarial.adaptive=false", "loss.adversarial.lecam=0.1"],
        ["model.bottleneck={kind: vq, codes: 24, kmeans_init: true, revive_every: 2}"],
    ],
    ids=["kl", "vq"],
)
def test_accumulation_is_a_bigger_batch_in_the_first_stage(overrides: list[str], tmp_path: Path) -> None:
    for name, batch, accumulate in (("whole", 4, 1), ("parts", 2, 2)):
        config = first_run(*overrides, *GENTLE, f"train.batch={batch}", f"train.accumulate={accumulate}")
        train_first(tmp_path / name, config)
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")


def test_checkpointing_repeats_the_blocks_and_changes_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]
    forward = Block.forward

    def counted(self: Block, h: Tensor, inputs: BlockInputs) -> Tensor:
        calls[0] += torch.is_grad_enabled()
        return forward(self, h, inputs)

    monkeypatch.setattr(Block, "forward", counted)
    count = {}
    for name, given in (("straight", "false"), ("again", "true")):
        calls[0] = 0
        config = second_run(*GENTLE, "denoiser.dropout=0.2", f"train.checkpointing={given}")
        train_second(tmp_path / name, config, tmp_path / "cache")
        count[name] = calls[0]
    assert_same_up_to_rounding(tmp_path / "straight", tmp_path / "again")
    assert count["again"] == 2 * count["straight"] > 0


def test_accumulation_is_a_bigger_batch_in_the_second_stage(tmp_path: Path) -> None:
    for name, batch, accumulate in (("whole", 6, 1), ("parts", 2, 3)):
        config = second_run(
            *GENTLE,
            "objective.stratified=true",
            "train.condition_dropout=0.5",
            "mirrored=true",
            f"train.batch={batch}",
            f"train.accumulate={accumulate}",
        )
        train_second(tmp_path / name, config, tmp_path / "cache")
    assert_same_up_to_rounding(tmp_path / "whole", tmp_path / "parts")
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert [line["loss"] for line in whole if "loss" in line] == pytest.approx(
        [line["loss"] for line in parts if "loss" in line], rel=1e-4
    )


def test_bfloat16_learns_what_float32_learns(tmp_path: Path) -> None:
    losses_of = {}
    for precision in ("float32", "bfloat16"):
        config = second_run("train.steps=25", f"train.precision={precision}", "train.save_every=25", "train.batch=8")
        train_second(tmp_path / precision, config, tmp_path / "cache")
        losses_of[precision] = torch.tensor([line["loss"] for line in logged(tmp_path / precision) if "loss" in line])
    exact, short = losses_of["float32"], losses_of["bfloat16"]
    assert (exact - short).abs().max() < 0.05 * exact.mean()
    assert exact[-5:].mean() < 0.9 * exact[:5].mean(), "the task should be one that can be learned"


# ---- the parts


def test_the_learning_rate_is_a_pure_function_of_the_step() -> None:
    peak = 2e-3
    tail = OptimiserConfig(learning_rate=peak, warmup_steps=10, decay="tail", tail_fraction=0.5, final=0.1)
    assert learning_rate(tail, 0, 0 / 100) == pytest.approx(peak / 10)
    assert learning_rate(tail, 9, 9 / 100) == pytest.approx(peak)
    assert learning_rate(tail, 50, 50 / 100) == pytest.approx(peak)
    assert learning_rate(tail, 75, 75 / 100) == pytest.approx(peak * (0.1 + 0.9 * 0.5))
    assert learning_rate(tail, 100, 100 / 100) == pytest.approx(peak * 0.1)
    cosine = OptimiserConfig(learning_rate=peak, warmup_steps=0, decay="cosine", final=0.2)
    assert learning_rate(cosine, 0, 0 / 80) == pytest.approx(peak)
    assert learning_rate(cosine, 20, 20 / 80) == pytest.approx(peak * (0.2 + 0.8 * 0.5 * (1 + math.sqrt(0.5))))
    assert learning_rate(cosine, 80, 80 / 80) == pytest.approx(peak * 0.2)
    constant = OptimiserConfig(learning_rate=peak, warmup_steps=0, decay="constant")
    assert {learning_rate(constant, step, step / 10) for step in range(10)} == {peak}


def test_the_logged_learning_rate_is_that_of_the_function(tmp_path: Path) -> None:
    config = second_run()
    train_second(tmp_path, config, tmp_path / "cache")
    rates = [line["learning_rate"] for line in logged(tmp_path) if "learning_rate" in line]
    expected = [
        learning_rate(config.train.optimiser, step, step / config.train.steps) for step in range(config.train.steps)
    ]
    assert rates == pytest.approx(expected, rel=1e-5)


def test_a_run_of_minutes_ends_by_the_clock_and_its_rate_falls_with_it(tmp_path: Path) -> None:
    often = ("train.steps=1", "train.log_every=1", "train.preview_every=100000", "train.save_every=100000")
    clock = (*often, "train.minutes=0.02", "train.optimiser.warmup_steps=0", "train.optimiser.decay=cosine")
    train_first(tmp_path / "first", first_run(*clock))
    config = second_run(*clock)
    train_second(tmp_path / "second", config, tmp_path / "cache")
    for stage in ("first", "second"):
        lines = [line for line in read_lines(tmp_path / stage / "log.jsonl") if "seconds" in line]
        seconds = [line["seconds"] for line in lines]
        assert len(seconds) > 2, "steps are of no account"
        assert seconds[-2] < 1.2 <= seconds[-1]
    done = [0.0, *(spent / 1.2 for spent in seconds[:-1])]
    expected = [learning_rate(config.train.optimiser, i, share) for i, share in enumerate(done)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected, rel=1e-3)


def test_a_run_of_minutes_has_at_least_and_at_most_so_many_steps(tmp_path: Path) -> None:
    for minutes, limits, steps in ((1e-9, "[3,5]", 3), (1e6, "[1,4]", 4)):
        often = ("train.log_every=1", "train.preview_every=100000", "train.save_every=100000")
        config = second_run(*often, f"train.minutes={minutes}", f"train.step_limits={limits}")
        train_second(tmp_path / f"{steps}", config, tmp_path / "cache")
        assert logged(tmp_path / f"{steps}")[-1]["step"] == steps


def test_the_progress_of_limited_minutes_never_falls_and_meets_both_limits() -> None:
    length = LoopSettings(minutes=1.0, step_limits=(10, 40))
    for pace, steps in ((30.0, 10), (3.0, 20), (0.5, 40)):  # of 2, 20 and 120 steps in the time
        shares = [progress(length, TrainState({}, {}, step=k, seconds=pace * k)) for k in range(steps + 1)]
        assert shares == sorted(shares)
        assert shares[0] == 0
        assert shares[-1] == 1 > shares[-2]
    with pytest.raises(ValidationError, match=r"give train\.minutes, or train\.step_limits=null"):
        LoopSettings(step_limits=(1, 2))
    with pytest.raises(ValidationError, match="give the fewest steps first"):
        LoopSettings(minutes=1.0, step_limits=(3, 2))


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(1))]
    for seed, parameter in enumerate(parameters[:2]):
        parameter.grad = torch.randn(parameter.shape, generator=generator(seed)) * 10
    norm = gradients_norm(parameters)
    expected = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert norm.item() == pytest.approx(expected.norm().item(), rel=1e-6)
    clip_(parameters, norm.item(), 2.0)
    clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.testing.assert_close(clipped, expected * 2.0 / expected.norm())
    clip_(parameters, gradients_norm(parameters).item(), 5.0)
    assert torch.equal(clipped, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))


def test_weight_decay_spares_norms_and_biases() -> None:
    layer = nn.Sequential(nn.Conv2d(2, 2, 3), nn.GroupNorm(1, 2))
    decayed, spared = build_optimiser(OptimiserConfig(weight_decay=0.3), layer).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [p.dim() for p in decayed["params"]] == [4]
    assert spared["weight_decay"] == 0
    assert [p.dim() for p in spared["params"]] == [1, 1, 1]


def test_the_average_follows_the_formula(tmp_path: Path) -> None:
    """Recomputed in float64 from the weights after each step; a skipped step is no update."""
    weights: list[Tensor] = []
    name = "denoiser.out.2.weight"
    config = second_run("train.steps=5", "train.ema_decay=0.3", "train.save_every=1")
    hooks = Hooks()
    path = tmp_path / "run"
    hooks.export = lambda network, state: weights.append(  # type: ignore[method-assign]
        saved(path)[0][f"module.networks.{name}"].double() if state.step > 1 else torch.zeros(0)
    )
    state = train_second(path, config, tmp_path / "cache", hooks)
    live = [*weights[1:], saved(path)[0][f"module.networks.{name}"].double()]
    average = torch.zeros_like(live[0])  # the U-Net's last layer begins with zeros
    for update, weight in enumerate(live, start=1):
        decay = min(0.3, (1 + update) / (10 + update))
        average = decay * average + (1 - decay) * weight
    assert len(live) == state.step
    torch.testing.assert_close(saved(path)[0][f"module.ema.{name}"].double(), average, atol=1e-7, rtol=1e-5)


def test_the_average_copies_buffers_and_needs_no_gradient() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    shadow = ema.average_of(net)
    net(torch.randn(5, 2, generator=generator(0)))
    ema.update(shadow, net, 0.9)
    assert torch.equal(shadow.get_buffer("1.running_mean"), net.get_buffer("1.running_mean"))
    assert not any(p.requires_grad for p in shadow.parameters())
    assert ema.decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema.decay_at(10**6, 0.999) == 0.999


def test_seeded_streams_repeat_and_leave_the_global_ones_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    values = []
    for _ in range(2):
        with seeded(3, "dropout", 7, device=torch.device("cpu")):
            values.append(torch.rand(2))
    with seeded(3, "dropout", 8, device=torch.device("cpu")):
        values.append(torch.rand(2))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert torch.equal(torch.rand(2), expected)


def test_stage_two_never_encodes_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = second_run("mirrored=true")
    train_second(tmp_path / "warm", second_run("train.steps=1"), tmp_path / "cache")

    def refused(*_: object) -> Example:
        raise AssertionError("an image was requested")

    monkeypatch.setattr(Autoencoder, "encode", refused)
    monkeypatch.setattr(Autoencoder, "decode", refused)
    monkeypatch.setattr(Images, "variant", refused)
    assert train_second(tmp_path / "run", config, tmp_path / "cache").step == config.train.steps
