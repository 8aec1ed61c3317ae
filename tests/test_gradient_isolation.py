"""Each loss of stage 1 moves what it should and nothing else, in the functions the loop calls."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from runs import SIZE, Images, first_run
from sfumato.autoencoder.bottleneck import Encoding
from sfumato.autoencoder.losses import LogitAverages
from sfumato.autoencoder.perceptual import FeatureDistance
from sfumato.config import apply_overrides
from sfumato.training.autoencoder import build_stage1
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.stage1_losses import DiscriminatorPass, Stage1Modules, discriminator_losses, generator_losses
from sfumato.training.workers import Workers

GAN = "loss.adversarial={weight: 0.5, start: 0, channels: 16, layers: 1, lecam: 0.1}"


class Edges(FeatureDistance):
    """A small perceptual distance: fixed random convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 6, 3)
        self._freeze()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.net(x) - self.net(y)).square().mean(dim=(1, 2, 3))


def modules_of(config: AutoencoderRun, perceptual: FeatureDistance | None = None) -> Stage1Modules:
    """The networks of a configuration with another distance in the place of its own."""
    raw = apply_overrides(config.model_dump(mode="json"), ["loss.perceptual={kind: none}"])
    return replace(build_stage1(AutoencoderRun.model_validate(raw), Workers()), perceptual=perceptual)


def forward(modules: Stage1Modules) -> tuple[Tensor, Tensor, Encoding]:
    images = Images()
    image = torch.stack([images[i].image for i in range(3)]).float() / 127.5 - 1
    noise = torch.randn(3, 3, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(0))
    encoding = modules.autoencoder.encode(image, noise)
    return image, modules.autoencoder.decode(encoding.z, quantize=False), encoding


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def assert_moved(module: nn.Module) -> None:
    still = [name for name, g in gradients(module).items() if g is None or not bool(g.abs().sum() > 0)]
    assert not still


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_generators_step_leaves_the_discriminator_alone_and_moves_all_of_its_own(adaptive: bool) -> None:
    config = first_run(GAN, f"loss.adversarial.adaptive={adaptive}", "loss.output_variance=true")
    modules = modules_of(config)
    assert modules.discriminator is not None
    image, output, encoding = forward(modules)
    total, terms = generator_losses(config.loss, modules, image, output, encoding, 1.0, Workers())
    total.backward()
    assert all(g is None for g in gradients(modules.discriminator).values())
    assert all(p.requires_grad for p in modules.discriminator.parameters())
    assert_moved(modules.autoencoder)
    assert_moved(modules.log_variance)
    assert not any(term.requires_grad for term in terms.values())


def test_the_discriminators_step_leaves_the_generators_gradients_as_they_are() -> None:
    config = first_run(GAN)
    modules = modules_of(config)
    assert modules.discriminator is not None
    image, output, encoding = forward(modules)
    generator_losses(config.loss, modules, image, output, encoding, 1.0, Workers())[0].backward()
    before = gradients(modules.autoencoder)
    total, _ = discriminator_losses(
        config.loss.adversarial, *DiscriminatorPass(modules.discriminator)(image, output), LogitAverages(0.1, -0.1)
    )
    total.backward()
    assert_moved(modules.discriminator)
    for name, gradient in gradients(modules.autoencoder).items():
        assert torch.equal(gradient, before[name]), name  # type: ignore[arg-type]


def test_the_generators_gradients_do_not_depend_on_the_discriminators_step() -> None:
    """Both from one forward pass, in the loop's order and without the second."""
    config = first_run(GAN)
    found = []
    for trained in (True, False):
        modules = modules_of(config)
        assert modules.discriminator is not None
        image, output, encoding = forward(modules)
        total, _ = generator_losses(config.loss, modules, image, output, encoding, 1.0, Workers())
        total.backward()
        if trained:
            discriminator_losses(
                config.loss.adversarial, *DiscriminatorPass(modules.discriminator)(image, output), LogitAverages()
            )[0].backward()
        found.append(gradients(modules.autoencoder))
    assert all(torch.equal(one, found[1][name]) for name, one in found[0].items())  # type: ignore[arg-type]


@pytest.mark.parametrize("bottleneck", ["{kind: kl}", "{kind: vq, codes: 16}"])
def test_the_perceptual_distance_reaches_the_encoder(bottleneck: str) -> None:
    """The encoder's gradient is that of the pixels plus the weight times that of the distance."""
    found: dict[float, dict[str, Tensor | None]] = {}
    for weight in (0.0, 1.0, 2.0):
        config = first_run(
            f"model.bottleneck={bottleneck}", f"loss.perceptual={{kind: efficientnet-lite0, weight: {weight}}}"
        )
        torch.manual_seed(0)
        perceptual = Edges()
        modules = modules_of(config, perceptual)
        image, output, encoding = forward(modules)
        generator_losses(config.loss, modules, image, output, encoding, 0.0, Workers())[0].backward()
        assert all(g is None for g in gradients(perceptual).values())
        found[weight] = gradients(modules.autoencoder.encoder)
    moved = set()
    for name, plain in found[0.0].items():
        once, twice = found[1.0][name], found[2.0][name]
        assert plain is not None
        assert once is not None
        assert twice is not None
        moved.add(bool((once - plain).abs().max() > 0) or plain.dim() == 1)  # a bias before a norm has no effect
        torch.testing.assert_close(twice - plain, 2 * (once - plain), atol=1e-6, rtol=1e-3)
    assert moved == {True}


def test_the_adversarial_term_is_not_computed_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = first_run(GAN)
    modules = modules_of(config)
    assert modules.discriminator is not None
    monkeypatch.setattr(modules.discriminator, "forward", lambda image: pytest.fail("the discriminator was called"))
    image, output, encoding = forward(modules)
    _, terms = generator_losses(config.loss, modules, image, output, encoding, 0.0, Workers())
    assert "adversarial" not in terms


def test_the_weight_of_the_adversarial_term_follows_its_strength() -> None:
    config = first_run(GAN, "loss.adversarial.adaptive=false")
    totals = []
    for strength in (1e-9, 0.5, 1.0):
        modules = modules_of(config)
        image, output, encoding = forward(modules)
        totals.append(generator_losses(config.loss, modules, image, output, encoding, strength, Workers())[0].item())
    assert totals[2] - totals[0] == pytest.approx(2 * (totals[1] - totals[0]), rel=1e-4)
