"""Which loss's gradient reaches which network when both stages train together, against the formulas written out."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from runs import Images, joint_run
from sfumato.data.loader import collate
from sfumato.diffusion import times
from sfumato.diffusion.objective import ObjectiveConfig
from sfumato.diffusion.schedule import FlowConfig, build_schedule
from sfumato.diffusion.times import LogitNormalTimes, RandomTimes, TimeDensity, UniformTimes
from sfumato.training.coupling import bound_weight
from sfumato.training.joint import JointParts
from sfumato.training.joint_model import joint_model, joint_networks
from sfumato.training.joint_pass import JointNoise, JointPass, forward_backward, joint_noise
from sfumato.training.joint_run import JointRun
from sfumato.training.workers import Workers

PLAIN = ["conditioner={kind: none}", "train.condition_dropout=0", "train.draws=3", "loss.pixel=l2"]
B, DRAWS, NUMBERS, ELEMENTS = 2, 3, 3 * 8 * 8, 3 * 16 * 16


class Step:
    """One micro-batch of a run whose weights are far from their zero initialisation."""

    def __init__(self, *overrides: str) -> None:
        self.config: JointRun = joint_run(*PLAIN, *overrides)
        self.schedule, self.workers = build_schedule(self.config.schedule), Workers("cpu")
        self.joint = joint_networks(joint_model(self.config, Images()))
        self.parts = JointParts.of(self.config, self.joint, self.workers)
        g = torch.Generator().manual_seed(0)
        for parameter in [*self.joint.networks.parameters(), *self.parts.adaptation.parameters()]:
            if float(parameter.detach().abs().sum()) == 0:
                parameter.data.copy_(torch.randn(parameter.shape, generator=g) * 0.1)
        self.joint.scaling.shift.copy_(torch.tensor([0.1, -0.2, 0.3]))
        self.joint.scaling.scale.copy_(torch.tensor([2.0, 3.0, 1.5]))
        self.image = collate(0, [0, 1], [Images()[0], Images()[1]]).images
        noises = joint_noise(self.config, self.schedule, self.parts.adaptation, (3, 8, 8), False, 0, self.workers)
        self.noise: JointNoise = noises[0]

    @property
    def autoencoder(self) -> nn.Module:
        return self.joint.autoencoder

    @property
    def denoiser(self) -> nn.Module:
        return self.joint.networks.denoiser

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that the loop's own step adds, by parameter."""
        self.joint.zero_grad()
        log_variance = self.parts.first.log_variance
        passed = JointPass(self.config, self.joint, log_variance, self.parts.head, self.schedule)
        forward_backward(
            self.config, self.parts.first, self.parts.adaptation, passed, self.image, self.noise, {}, ("dropout",),
            self.schedule, self.workers,
        )  # fmt: skip
        return {name: p.grad.clone() for name, p in self.joint.named_parameters() if p.grad is not None}

    def of(self, loss: Callable[["Step"], Tensor]) -> dict[str, Tensor]:
        """The gradients of a loss that a test writes out."""
        self.joint.zero_grad()
        loss(self).backward()
        return {name: p.grad.clone() for name, p in self.joint.named_parameters() if p.grad is not None}

    # ---- the formulas

    def reconstruction(self) -> Tensor:
        """Stage 1 alone, from the posterior's sample, with its KL term."""
        encoding = self.joint.autoencoder.encode(self.image, self.noise.posterior)
        output = self.joint.autoencoder.decode(encoding.z)
        return (output - self.image).square().mean() + self.config.loss.kl_weight * encoding.regulariser / ELEMENTS

    def noised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, the target, and t as (B · draws, 1, 1, 1), of latents x (B, 3, 8, 8)."""
        x0 = torch.cat([x[i : i + 1] for i in range(B) for _ in range(DRAWS)])
        t = self.noise.second.t.float()[:, None, None, None]
        return (1 - t) * x0 + t * self.noise.second.noise, self.noise.second.noise - x0, t

    def mean(self) -> Tensor:
        return self.joint.autoencoder.encode(self.image).z

    def normal(self, x: Tensor) -> Tensor:
        return (x - self.joint.scaling.shift[:, None, None]) * self.joint.scaling.scale[:, None, None]

    def predicted(self, x_t: Tensor, t: Tensor) -> Tensor:
        prediction: Tensor = self.joint.networks(x_t, (t.flatten().double() * 1000 - 1).float(), {})
        return prediction

    def errors(self, x: Tensor) -> Tensor:
        """The mean squared error of the velocity of each draw, (B · draws,)."""
        x_t, v, t = self.noised(x)
        return (self.predicted(x_t, t) - v).square().flatten(1).mean(1)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], names: str) -> None:
    """Both have gradients of the parameters of that beginning, and the same ones."""
    chosen = [name for name in one if name.startswith(names)]
    assert chosen
    scale = max(float(other[name].abs().max()) for name in chosen)
    assert scale > 0
    for name in chosen:
        torch.testing.assert_close(one[name], other[name], rtol=2e-3, atol=2e-4 * scale, msg=name)


def plus(one: dict[str, Tensor], other: dict[str, Tensor], weight: float) -> dict[str, Tensor]:
    zero = torch.zeros(())
    return {name: one.get(name, zero) + weight * other.get(name, zero) for name in one.keys() | other.keys()}


def test_naive_adds_the_diffusion_loss_to_the_encoders_gradient() -> None:
    step = Step("coupling={kind: naive, weight: 3}")
    found = step.gradients()
    second = step.of(lambda s: s.errors(s.mean()).mean())
    wanted = plus(step.of(Step.reconstruction), second, 3.0)
    assert_close(found, wanted, "autoencoder.encoder.")
    assert_close(found, wanted, "autoencoder.decoder.")
    assert_close(found, second, "networks.")  # the denoiser's own gradient has no weight


def test_detached_keeps_the_diffusion_loss_out_of_the_autoencoder() -> None:
    step = Step("coupling={kind: detached, share: 0}", "objective.weighting.kind=learned")
    found = step.gradients()
    assert_close(found, step.of(Step.reconstruction), "autoencoder.")

    def second(s: Step) -> Tensor:
        u = s.parts.adaptation.log_variance(s.schedule.log_snr(s.noise.second.t))
        return (s.errors(s.normal(s.mean().detach())) * (-u).exp() + u).mean()

    assert_close(found, step.of(second), "networks.")
    for parameter in step.denoiser.parameters():
        parameter.data.mul_(1.5)
    again = step.gradients()
    assert all(torch.equal(again[name], found[name]) for name in found if name.startswith("autoencoder."))
    assert not torch.equal(again["networks.denoiser.out.2.weight"], found["networks.denoiser.out.2.weight"])


def test_detached_decodes_noised_normalised_latents_of_a_share_of_the_images() -> None:
    step = Step("coupling={kind: detached, share: 1, noise: 0.3}")
    t = step.noise.decoder_times
    assert 0 < t.min() < t.max() < 0.3

    def noised(s: Step) -> Tensor:
        encoding = s.joint.autoencoder.encode(s.image, s.noise.posterior)
        x = s.normal(encoding.z)
        x = (1 - t[:, None, None, None]) * x + t[:, None, None, None] * s.noise.decoder
        raw = x / s.joint.scaling.scale[:, None, None] + s.joint.scaling.shift[:, None, None]
        output = s.joint.autoencoder.decode(raw)
        return (output - s.image).square().mean() + s.config.loss.kl_weight * encoding.regulariser / ELEMENTS

    assert_close(step.gradients(), step.of(noised), "autoencoder.")
    few = Step("coupling={kind: detached, share: 0.5}", "train.batch=64").noise.decoder_times
    assert 16 < int((few == 0).sum()) < 48


@pytest.mark.parametrize("weighting", ["uniform", "learned"])
def test_prior_gives_the_encoder_the_bound_and_the_denoiser_its_own_loss(weighting: str) -> None:
    step = Step("coupling={kind: prior, weight: 40, log_snr: 1}", f"objective.weighting.kind={weighting}")
    t = step.noise.second.t
    assert 0 < int((t < 1 / (1 + math.exp(0.5))).sum()) < len(t), "times on both sides of the fixed noise"
    found = step.gradients()

    def first(s: Step) -> Tensor:
        z = s.mean() + math.exp(-0.5) * s.noise.decoder
        return (s.joint.autoencoder.decode(z) - s.image).square().mean()

    def bound(s: Step) -> Tensor:
        density = torch.exp(-0.5 * torch.logit(t) ** 2) / (math.sqrt(2 * math.pi) * t * (1 - t))
        nats = NUMBERS * s.errors(s.mean()) * (1 - t) / t / density  # -dSNR/dt / 2 = (1 - t) / t³ on x0, t² on v
        return (nats * (t >= 1 / (1 + math.exp(0.5)))).mean() / ELEMENTS

    assert_close(found, plus(step.of(first), step.of(bound), 40.0), "autoencoder.encoder.")
    assert_close(found, step.of(first), "autoencoder.decoder.")

    def second(s: Step) -> Tensor:
        if weighting == "uniform":
            return s.errors(s.mean().detach()).mean()
        u = s.parts.adaptation.log_variance(s.schedule.log_snr(t))
        return (s.errors(s.mean().detach()) * (-u).exp()).mean()

    assert_close(found, step.of(second), "networks.")


def test_anchored_compares_the_decoded_expected_image_and_leaves_the_decoder_alone() -> None:
    step = Step("coupling={kind: anchored, weight: 7}")
    found = step.gradients()

    def anchor(s: Step) -> Tensor:
        x_t, _, t = s.noised(s.normal(s.mean()))
        x_t, t = x_t[::DRAWS], t[::DRAWS]
        expected = x_t - t * s.predicted(x_t, t)
        raw = expected / s.joint.scaling.scale[:, None, None] + s.joint.scaling.shift[:, None, None]
        error = (s.joint.autoencoder.decode(raw) - s.image).square().flatten(1).mean(1)
        return ((1 - t.flatten()) ** 2 * error).mean()

    first, anchored = step.of(Step.reconstruction), step.of(anchor)
    second = step.of(lambda s: s.errors(s.normal(s.mean().detach())).mean())
    assert_close(found, plus(first, anchored, 7.0), "autoencoder.encoder.")
    assert_close(found, first, "autoencoder.decoder.")
    assert_close(found, first, "autoencoder.post_quant_conv.")
    assert_close(found, plus(second, anchored, 7.0), "networks.")
    assert all(p.requires_grad for p in step.joint.parameters())


@pytest.mark.parametrize("density", [LogitNormalTimes(mean=0.8, std=1.3), UniformTimes(high=1.0)])
def test_the_bound_of_gaussian_latents_is_their_information(density: TimeDensity) -> None:
    """½ log(1 + λ · SNR) nats for a number of variance λ and an optimal denoiser (Guo et al. 2005, I-MMSE)."""
    schedule, config = build_schedule(FlowConfig()), ObjectiveConfig(prediction="flow", times=density)
    sampled = times.sample(density, 200_000, torch.Generator().manual_seed(0), schedule, stratified=True)
    for variance in (0.3, 2.0):
        t = sampled.t
        error = variance / ((1 - t) ** 2 * variance + t**2)  # the velocity's, given x_t
        found = (bound_weight(5.0, config, schedule, RandomTimes(t)) * error).mean()
        assert found.item() == pytest.approx(0.5 * math.log1p(variance * math.exp(5)), rel=0.01)


def test_densities_of_times_are_those_that_are_sampled() -> None:
    schedule = build_schedule(FlowConfig())
    for density in (LogitNormalTimes(mean=-0.5, std=0.7), UniformTimes(low=0.2, high=0.6)):
        t = times.sample(density, 100_000, torch.Generator().manual_seed(1), schedule, stratified=True).t
        edges = torch.linspace(0, 1, 21, dtype=torch.float64)
        shares = torch.histogram(t, edges).hist / len(t)
        fine = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        wanted = times.density(density, fine).reshape(20, 100).mean(1) / 20
        torch.testing.assert_close(shares, wanted, atol=2e-3, rtol=0)
