"""Loss pieces against closed forms, and which parameters they reach."""

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.autoencoder import losses
from sfumato.autoencoder.discriminator import PatchDiscriminator, frozen
from sfumato.autoencoder.losses import AdversarialConfig, LogitAverages, LossConfig


def test_reconstruction_and_likelihood() -> None:
    image = torch.zeros(2, 3, 4, 5)
    decoded = torch.full_like(image, 0.5)
    decoded[1] = -1.0
    error = losses.reconstruction(image, decoded, "l2")
    assert error.flatten(1).mean(1).tolist() == [0.25, 1.0]
    error = losses.reconstruction(image, decoded, "l1")
    assert losses.negative_log_likelihood(error).item() == pytest.approx(0.75)
    assert losses.negative_log_likelihood(error, "sum").item() == pytest.approx(0.75 * 60)
    s = torch.tensor(math.log(2.0))
    assert losses.negative_log_likelihood(error, "sum", s).item() == pytest.approx((0.375 + math.log(2.0)) * 60)
    spread = losses.with_perceptual(error, torch.tensor([1.0, 2.0]), 0.5)
    assert spread.flatten(1).mean(1).tolist() == [1.0, 2.0]


def test_the_best_log_variance_is_the_log_of_the_error() -> None:
    error, s = torch.full((2, 3, 4, 5), 0.3), torch.zeros((), requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.negative_log_likelihood(error, "mean", s), s)
    assert gradient.item() == pytest.approx(1 - 0.3)
    best = torch.tensor(math.log(0.3), requires_grad=True)
    (gradient,) = torch.autograd.grad(losses.negative_log_likelihood(error, "mean", best), best)
    assert gradient.item() == pytest.approx(0.0, abs=1e-6)


def test_kl_weight_means_the_same_under_both_reductions() -> None:
    elements, error, kl = 60, torch.rand(2, 3, 4, 5), torch.tensor(7.0)
    totals = {}
    for reduction in ("sum", "mean"):
        config = LossConfig(reduction=reduction, kl_weight=0.01)
        nll = losses.negative_log_likelihood(error, config.reduction)
        totals[reduction] = (nll + losses.regularisation(config, "kl", kl, elements)).item()
    assert totals["sum"] == pytest.approx(elements * totals["mean"])
    assert losses.regularisation(LossConfig(codebook_weight=2.0), "vq", kl, elements).item() == 14.0


def test_gan_terms() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0])
    assert losses.discriminator_loss(real, fake, "hinge").item() == pytest.approx(0.5 * (0.5 + 1.0))
    zero = torch.zeros(5)
    assert losses.discriminator_loss(zero, zero, "vanilla").item() == pytest.approx(math.log(2.0))
    bce = nn.functional.binary_cross_entropy_with_logits
    expected = 0.5 * (bce(real, torch.ones(2)) + bce(fake, torch.zeros(2)))
    assert losses.discriminator_loss(real, fake, "vanilla").item() == pytest.approx(expected.item())
    assert losses.generator_loss(fake).item() == 1.0


def test_adaptive_weight() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    nll, adversarial = 10 * w.sum(), (w * torch.tensor([0.6, 0.8])).sum()
    weight = losses.adaptive_weight(nll, adversarial, w)
    assert weight.item() == pytest.approx(10 * math.sqrt(2) / (1 + 1e-4))
    assert not weight.requires_grad
    assert weight.dtype == torch.float32
    assert losses.adaptive_weight(nll, 0 * adversarial, w, max_weight=50.0).item() == 50.0
    assert losses.adaptive_weight(nll * math.inf, adversarial, w).item() == 0.0
    (nll + adversarial).backward()  # both graphs were kept


def test_the_discriminator_starts_first_and_the_generator_ramps() -> None:
    config = AdversarialConfig(weight=0.5, start=100, warmup_steps=20, ramp_steps=10)
    assert [losses.discriminator_trains(config, n) for n in (79, 80, 100)] == [False, True, True]
    assert [losses.adversarial_strength(config, n) for n in (80, 99, 100, 105, 110, 500)] == [0, 0, 0, 0.5, 1, 1]
    original = AdversarialConfig(weight=0.5, start=100)
    assert [losses.adversarial_strength(original, n) for n in (99, 100)] == [0, 1]
    assert [losses.discriminator_trains(original, n) for n in (99, 100)] == [False, True]
    off = AdversarialConfig(weight=0.0, start=0)
    assert not losses.discriminator_trains(off, 5)
    assert losses.adversarial_strength(off, 5) == 0


def test_lecam_pulls_towards_the_other_sides_average() -> None:
    averages = LogitAverages().updated(torch.tensor([4.0]), torch.tensor([-2.0]), decay=0.5)
    assert (averages.real, averages.fake) == (2.0, -1.0)
    real, fake = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    value = losses.lecam(real, fake, averages)
    assert value.item() == pytest.approx((1 + 1) ** 2 + (2 - 0) ** 2)
    value.backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.item() > 0  # descent lowers the real logit and raises the fake one
    assert fake.grad.item() < 0


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(x)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_each_step_leaves_the_others_gradients_alone(norm: losses.Norm) -> None:
    generator, critic = Generator(), PatchDiscriminator(channels=8, layers=2, norm=norm)
    image = torch.rand(2, 3, 24, 32)
    decoded = generator(image)
    with frozen(critic):
        logits = critic(decoded)
    losses.generator_loss(logits).backward()
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    before = [p.grad.clone() for p in generator.parameters() if p.grad is not None]
    assert len(before) == 2
    assert all(g.abs().sum() > 0 for g in before)

    losses.discriminator_loss(critic(image), critic(decoded.detach())).backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(
        torch.equal(p.grad, g) for p, g in zip(generator.parameters(), before, strict=True) if p.grad is not None
    )


def test_a_grouped_discriminator_sees_each_image_alone() -> None:
    critic = PatchDiscriminator(channels=8, layers=2, norm="group")
    image = torch.rand(3, 3, 24, 32)
    assert critic(image).shape == (3, 1, 4, 6)
    assert torch.allclose(critic(image)[:1], critic(image[:1]), atol=1e-6)


def test_frozen_restores_what_it_found() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)

    def leave_by_error() -> None:
        with frozen(layer):
            assert not layer.weight.requires_grad
            raise RuntimeError

    with pytest.raises(RuntimeError):
        leave_by_error()
    assert layer.weight.requires_grad
    assert not layer.bias.requires_grad


def test_configurations_by_kind() -> None:
    config = LossConfig.model_validate({"perceptual": {"kind": "lpips", "backbone": "a.pth", "heads": "b.pth"}})
    assert config.perceptual.kind == "lpips"
    assert config.perceptual_weight == 1.0
    assert LossConfig().perceptual.kind == "none"
    assert LossConfig().perceptual_weight == 0.0
    with pytest.raises(ValueError, match="efficientnet-lite0"):
        LossConfig.model_validate({"perceptual": {"kind": "lpps"}})
