"""Regularisers of the latent: geometry and noise in closed form, and what they do to a training."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from runs import SIZE, Images, assert_same_tensors, first_run, saved, train_first
from sfumato import rng
from sfumato.autoencoder.frequencies import low_passed
from sfumato.autoencoder.latent_changes import (
    NO_CHANGE,
    EquivarianceConfig,
    LatentChange,
    SpectralConfig,
    choose_geometry,
    choose_kept,
    scaled,
    smallest_latent,
)
from sfumato.autoencoder.model import Autoencoder
from sfumato.errors import UserError
from sfumato.evaluation.latents import dct2, halved, relative_error
from sfumato.training.autoencoder import latent_change
from sfumato.training.stage1_losses import AutoencoderPass
from sfumato.training.workers import Workers

EQUIVARIANT = "loss.equivariance={probability: 1.0, smallest: 0.5, turns: false}"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=rng.generator(seed, "test", 1))


def geometries(config: EquivarianceConfig, latent: tuple[int, int] = (16, 16), count: int = 400) -> list[LatentChange]:
    return [choose_geometry(config, latent, rng.generator(0, "test", step)) for step in range(count)]


# ---- geometry


def test_nothing_is_changed_by_default() -> None:
    assert set(geometries(EquivarianceConfig())) == {NO_CHANGE}
    image, z = noise(2, 3, 8, 8), noise(2, 4, 4, 4)
    assert NO_CHANGE.input(image, 2) is image
    assert NO_CHANGE.target(image, 2) is image
    assert NO_CHANGE.latent(z) is z


def test_shares_scales_and_turns_are_those_asked_for() -> None:
    found = geometries(EquivarianceConfig(probability=0.5, small_images=0.25), count=2000)
    decoded = [each for each in found if each.turns]
    encoded = [each for each in found if each.encoded is not None]
    assert len(decoded) / 2000 == pytest.approx(0.5, abs=0.04)
    assert len(encoded) / 2000 == pytest.approx(0.125, abs=0.03)
    assert {each.turns for each in decoded} == {1, 2, 3}
    assert {each.decoded[0] for each in decoded if each.decoded} == set(range(4, 16))
    assert {each.encoded[0] for each in encoded if each.encoded} == set(range(4, 16))
    assert not any(each.turns for each in geometries(EquivarianceConfig(probability=1, turns=False)))


def test_sides_keep_their_proportion() -> None:
    for each in geometries(EquivarianceConfig(probability=1), latent=(16, 32)):
        assert each.decoded is not None
        assert each.decoded[1] == 2 * each.decoded[0]


def test_a_latent_of_four_is_only_turned() -> None:
    found = geometries(EquivarianceConfig(probability=1), latent=(4, 4))
    assert {each.decoded for each in found} == {None}
    assert smallest_latent(EquivarianceConfig(probability=1), (4, 4)) == (4, 4)
    assert smallest_latent(EquivarianceConfig(probability=1), (32, 32)) == (8, 8)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_image_and_latent_change_alike(turns: int) -> None:
    """With the identity as autoencoder, f = 1, the changed latent is the image that is asked for."""
    image = noise(2, 3, 12, 16)
    change = LatentChange(decoded=(6, 8), turns=turns)
    assert torch.equal(change.latent(image), change.target(image, 1))
    assert change.target(image, 1).shape[-2:] == ((6, 8) if turns % 2 == 0 else (8, 6))
    assert torch.equal(scaled(image, (6, 8)), halved(image))
    assert torch.equal(LatentChange(encoded=(3, 4)).input(image, 2), scaled(image, (6, 8)))


def test_the_upper_frequencies_are_removed_and_no_others() -> None:
    x = noise(2, 3, 12, 8).double()
    before, after = dct2(x), dct2(low_passed(x, 0.5))
    torch.testing.assert_close(after[..., :6, :4], before[..., :6, :4])
    assert max(after[..., 6:, :].abs().max().item(), after[..., 4:].abs().max().item()) < 1e-12
    torch.testing.assert_close(low_passed(x, 1.0), x)
    constant = low_passed(x, 0.01)
    torch.testing.assert_close(constant, x.mean(dim=(2, 3), keepdim=True).expand_as(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(low_passed(x.float(), 0.5), low_passed(x, 0.5).float()) or torch.allclose(
            low_passed(x.float(), 0.5), low_passed(x, 0.5).float(), atol=1e-5
        )


def test_image_and_latent_lose_the_same_frequencies() -> None:
    image = noise(2, 3, 16, 12)
    change = LatentChange(decoded=(12, 8), turns=1, kept=0.5)
    assert torch.equal(change.latent(image), change.target(image, 1))
    torch.testing.assert_close(change.target(image, 1), low_passed(scaled(image, (12, 8)).rot90(dims=(-2, -1)), 0.5))


def test_the_kept_share_is_the_one_asked_for() -> None:
    config = SpectralConfig(probability=0.5, lowest=0.25)
    found = [choose_kept(config, rng.generator(0, "test", step)) for step in range(2000)]
    kept = [share for share in found if share is not None]
    assert len(kept) / 2000 == pytest.approx(0.5, abs=0.04)
    assert min(kept) == pytest.approx(0.25, abs=0.01)
    assert sum(kept) / len(kept) == pytest.approx(0.625, abs=0.02)
    assert choose_kept(SpectralConfig(), rng.generator(0, "test", 0)) is None
    run = first_run("loss.spectral={probability: 1}")
    assert latent_change(run, 3, 0, Workers()).kept == latent_change(run, 3, 1, Workers()).kept is not None


def test_the_noise_is_the_formula() -> None:
    z, epsilon = noise(3, 2, 4, 4), noise(3, 2, 4, 4, seed=1)
    tau = torch.tensor([0.0, 0.5, 1.0])
    changed = LatentChange(noise_share=tau, noise=epsilon, gamma=3.0).latent(z)
    spread = z.std(dim=(0, 2, 3), correction=0)[:, None, None]
    assert torch.equal(changed[0], z[0])
    torch.testing.assert_close(changed[1], 0.5 * z[1] + 1.5 * spread * epsilon[1])
    torch.testing.assert_close(changed[2], 3 * spread * epsilon[2])


def test_a_share_of_the_samples_is_noised() -> None:
    config = first_run("loss.latent_noise={gamma: 3, share: 0.5}", "train.batch=400")
    change = latent_change(config, 0, 0, Workers())
    assert change.noise_share is not None
    assert (change.noise_share > 0).double().mean().item() == pytest.approx(0.5, abs=0.08)
    again, other = latent_change(config, 0, 0, Workers()), latent_change(config, 1, 0, Workers())
    assert torch.equal(again.noise_share, change.noise_share)  # type: ignore[arg-type]
    assert not torch.equal(other.noise_share, change.noise_share)  # type: ignore[arg-type]


# ---- in training


@pytest.mark.parametrize(
    "change", [LatentChange(decoded=(4, 4), turns=1), LatentChange(encoded=(4, 4)), LatentChange(kept=0.3)]
)
@pytest.mark.parametrize("bottleneck", ["{kind: kl}", "{kind: vq, codes: 16}"])
def test_the_gradient_reaches_the_encoder_through_the_changed_latent(change: LatentChange, bottleneck: str) -> None:
    autoencoder = Autoencoder(first_run(f"model.bottleneck={bottleneck}").model)
    image = noise(2, 3, SIZE, SIZE)
    seen = change.input(image, 2)
    epsilon = noise(2, 3, SIZE // 2, SIZE // 2) if "kl" in bottleneck else None
    _, output, _ = AutoencoderPass(autoencoder, torch.nn.ParameterList())(seen, epsilon, change)
    target = change.target(seen, 2)
    assert output.shape == target.shape
    (output - target).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in autoencoder.encoder.conv_in.parameters())


def error_under_scaling(config: str, tmp_path: Path) -> float:
    run = first_run(config, "train.steps=100", "train.batch=8", "train.preview_every=100", "train.save_every=100")
    autoencoder = train_first(tmp_path, run).modules["ema"]
    assert isinstance(autoencoder, Autoencoder)
    images = Images()
    image = torch.stack([images[i].image for i in range(8)]).float() / 127.5 - 1
    with torch.no_grad():
        latent, small = (autoencoder.encode(x).z for x in (image, halved(image)))
    return relative_error(small, halved(latent))


def test_the_error_under_scaling_falls(tmp_path: Path) -> None:
    plain = error_under_scaling("loss.kl_weight=1e-6", tmp_path / "plain")
    regularised = error_under_scaling(EQUIVARIANT, tmp_path / "regularised")
    assert regularised < 0.92 * plain


@pytest.mark.parametrize(
    "settings",
    [
        ("loss.equivariance={probability: 0.5, small_images: 0.5, smallest: 0.5}", "model.padding=reflect"),
        ("loss.latent_noise={gamma: 3}", "loss.spectral={probability: 0.5}", "train.accumulate=2"),
        (
            "model.bottleneck={kind: vq, codes: 16, revive_every: 2}",
            "loss.equivariance={probability: 0.3, small_images: 0.5, smallest: 0.5}",
            "loss.adversarial={weight: 0.5, start: 1, channels: 16, layers: 1, norm: group}",
            "train.accumulate=2",
        ),
    ],
)
def test_resumed_bit_for_bit(settings: tuple[str, ...], tmp_path: Path) -> None:
    constant = (*settings, "train.optimiser.decay=constant", "train.discriminator.decay=constant")
    train_first(tmp_path / "whole", first_run(*constant, "train.steps=6"))
    for steps in (3, 6):
        train_first(tmp_path / "parts", first_run(*constant, f"train.steps={steps}"))
    assert_same_tensors(saved(tmp_path / "whole")[0], saved(tmp_path / "parts")[0])


def test_the_decoder_alone_refuses_what_changes_the_latents() -> None:
    with pytest.raises(UserError, match=r"which train\.part decoder keeps"):
        first_run(EQUIVARIANT, "train.part=decoder", "start=somewhere")
    with pytest.raises(
        UserError, match=r"loss\.spectral\.probability changes the latents, which train\.part decoder keeps"
    ):
        first_run("loss.spectral={probability: 0.5}", "train.part=decoder", "start=somewhere")
    first_run("loss.latent_noise={gamma: 3}", "train.part=decoder", "start=somewhere")


def test_images_too_small_for_the_discriminator_are_refused() -> None:
    with pytest.raises(UserError, match=r"asks for images of 8 pixels, and a discriminator of 2 layers needs 12"):
        first_run(EQUIVARIANT, "loss.adversarial={weight: 0.5, layers: 2}")
