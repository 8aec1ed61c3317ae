"""A tiny decoder: its network, what it learns from, that it learns, and that the model beside it stays as it is."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import sfumato
from runs import SIZE, Images, assert_same_tensors, first_model, latents_of, second_run
from sfumato import flops
from sfumato.autoencoder.model import AutoencoderConfig, KLConfig, VQConfig
from sfumato.autoencoder.scaling import Scaling
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.autoencoder.tiny_file import FILE, DistilledDecoder
from sfumato.errors import UserError
from sfumato.images import to_uint8, to_unit
from sfumato.model import LatentDiffusion, ModelConfig, build, pixel_space
from sfumato.training.distillation import (
    Distillation,
    Pairs,
    build_tiny_decoder,
    compare_decoders,
    distil,
    gather_pairs,
    tiny_decoder_config,
)
from sfumato.training.optim import OptimiserConfig
from sfumato.training.second_stage import build_model

QUICK = Distillation(
    channels=16,
    blocks=1,
    images=9,
    crop=8,
    steps=150,
    batch=4,
    workers=0,
    precision="float32",
    optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=10, weight_decay=0.0),
)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    """An untrained autoencoder of f = 2, its latents on a scale of their own."""
    first = first_model()
    first.scaling.shift.copy_(torch.tensor([0.3, -0.2, 0.1]))
    first.scaling.scale.fill_(4.0)
    return first


@pytest.fixture(scope="module")
def pairs(model: LatentDiffusion) -> Pairs:
    return gather_pairs(QUICK, model, Images())


def with_tiny(model: LatentDiffusion) -> LatentDiffusion:
    """The model with a tiny decoder without training."""
    config = tiny_decoder_config(QUICK, model)
    torch.manual_seed(3)
    network = TinyDecoder(config.decoder, Scaling(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 2.0])))
    return replace(model, tiny=DistilledDecoder(config, network.eval().requires_grad_(False)))


# ---- the network


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_latent_far_away_does_not_change_a_position(factor: int) -> None:
    torch.manual_seed(0)
    network = TinyDecoder(TinyDecoderConfig(latent_channels=3, factor=factor, channels=8, blocks=1))
    z = torch.randn(2, 3, 14, 9)
    image = network(z)
    assert image.shape == (2, 3, 14 * factor, 9 * factor)
    z[:, :, -1] += 1.0
    after = network(z)
    torch.testing.assert_close(after[:, :, : 7 * factor], image[:, :, : 7 * factor])
    assert not torch.allclose(after[:, :, -factor:], image[:, :, -factor:])


def test_latents_beyond_reach_are_bent_back_by_its_own_scaling() -> None:
    torch.manual_seed(0)
    scaling = Scaling(torch.tensor([5.0]), torch.tensor([0.1]))
    network = TinyDecoder(TinyDecoderConfig(latent_channels=1, factor=2, channels=4), scaling)
    far = network(torch.full((1, 1, 3, 3), 5.0 + 10 * 100))  # a hundred deviations of 10
    torch.testing.assert_close(network(torch.full((1, 1, 3, 3), 5.0 + 10 * 1e6)), far)
    plain = TinyDecoder(network.config)
    plain.load_state_dict({**network.state_dict(), **plain.scaling.state_dict(prefix="scaling.")})
    z = torch.randn(1, 1, 3, 3)
    torch.testing.assert_close(network(5.0 + 10 * z), plain(z))


FULL = {
    "kl-f4": AutoencoderConfig(channel_multipliers=(1, 2, 4), latent_channels=3),
    "kl-f8": AutoencoderConfig(),
    "small-f4": AutoencoderConfig(channels=16, channel_multipliers=(1, 2, 4), blocks_per_level=1, norm_groups=8),
    "small-f8": AutoencoderConfig(channels=16, channel_multipliers=(1, 2, 4, 4), blocks_per_level=1, norm_groups=8),
    "vq-f8": AutoencoderConfig(channels=32, bottleneck=VQConfig(codes=512)),
}


@pytest.mark.parametrize("name", FULL)
def test_it_takes_at_most_a_twentieth_of_the_decoders_operations(name: str) -> None:
    weights = first_model()  # whichever: they are only named
    whole = replace(weights, config=weights.config.model_copy(update={"autoencoder": FULL[name]}))
    chosen = tiny_decoder_config(Distillation(), whole).decoder
    size = (96, 64)
    assert chosen.factor == FULL[name].factor
    assert flops.decode(FULL[name], size) >= 20 * flops.decode_tiny(chosen, size)
    wider = chosen.model_copy(update={"channels": chosen.channels + 4})
    assert chosen.channels == 128 or flops.decode(FULL[name], size) < 20.5 * flops.decode_tiny(wider, size)


def test_packed_for_inference_it_gives_the_same_images(model: LatentDiffusion) -> None:
    whole = with_tiny(first_model())
    latents = torch.randn(3, 3, 5, 7)
    plain = whole.decode(latents, "tiny")
    torch.testing.assert_close(whole.for_inference(torch.float32).decode(latents, "tiny"), plain, atol=1e-5, rtol=1e-5)


# ---- what it learns from


def test_pairs_are_raw_latents_and_what_the_decoder_makes_of_them(model: LatentDiffusion, pairs: Pairs) -> None:
    assert len(pairs) == QUICK.images
    means = {}
    for i in range(len(Images())):
        image = to_unit(Images()[i].image)[None]
        raw = model.autoencoder.encode(image).z
        means[i] = (raw, to_uint8(model.autoencoder.decode(raw)))
    for latent, image in zip(pairs.latents, pairs.images, strict=True):
        row = min(means, key=lambda i: (means[i][0] - latent).abs().max().item())
        torch.testing.assert_close(latent[None], means[row][0], atol=1e-5, rtol=1e-4)
        assert (image.int() - means[row][1][0].int()).abs().max() <= 1


def test_a_cut_out_keeps_latent_and_pixels_together() -> None:
    latents = torch.arange(2 * 1 * 9 * 7.0).reshape(2, 1, 9, 7)
    images = F.interpolate(latents, scale_factor=4, mode="nearest").to(torch.uint8).expand(-1, 3, -1, -1)
    pairs = Pairs(latents, images, crop=8)
    corners = set()
    for seed in range(20):
        cut = pairs.variant(1, seed)
        latent = cut.fields["latent"]
        assert (latent.shape, cut.image.shape) == ((1, 8, 7), (3, 32, 28))
        assert torch.equal(cut.image[0].float(), F.interpolate(latent[None], scale_factor=4)[0, 0])
        corners.add(latent[0, 0, 0].item())
    assert corners == {63.0, 70.0}


def test_gathering_ends_in_time(model: LatentDiffusion) -> None:
    assert len(gather_pairs(QUICK.model_copy(update={"batch": 2}), model, Images(), seconds=0.0)) == 2


# ---- learning


def test_learning_brings_it_near_the_decoder(model: LatentDiffusion, pairs: Pairs, tmp_path: Path) -> None:
    fresh = build_tiny_decoder(QUICK, tiny_decoder_config(QUICK, model), pairs).eval()
    before = compare_decoders(model, fresh, Images())
    network, state = distil(QUICK, build_tiny_decoder(QUICK, tiny_decoder_config(QUICK, model), pairs), pairs, tmp_path)
    after = compare_decoders(model, network, Images())
    assert state.step == QUICK.steps
    assert after.full_to_image == pytest.approx(before.full_to_image)
    assert after.tiny_to_full > before.tiny_to_full + 5
    target = to_unit(pairs.images)
    error = (network(pairs.latents) - target).square().mean()
    assert error < 0.3 * target.var(dim=(0, 2, 3)).mean(), "hardly better than a single colour"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_the_same_seed_learns_the_same(model: LatentDiffusion, pairs: Pairs, tmp_path: Path) -> None:
    short = QUICK.model_copy(update={"steps": 3})
    description = tiny_decoder_config(short, model)
    one, other = (distil(short, build_tiny_decoder(short, description, pairs), pairs, tmp_path)[0] for _ in range(2))
    assert_same_tensors(one.state_dict(), other.state_dict())


def test_minutes_end_it_instead_of_steps(model: LatentDiffusion, pairs: Pairs, tmp_path: Path) -> None:
    brief = QUICK.model_copy(update={"minutes": 1e-9})
    _, state = distil(brief, build_tiny_decoder(brief, tiny_decoder_config(brief, model), pairs), pairs, tmp_path)
    assert state.step == 1


# ---- in the model folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_it_is_stored_beside_the_unchanged_model(model: LatentDiffusion, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model.save(folder)
    before = hashes(folder)
    assert sfumato.load(folder).tiny is None
    whole = with_tiny(model)
    assert whole.tiny is not None
    whole.tiny.save(folder)
    assert {name: value for name, value in hashes(folder).items() if name != FILE} == before
    loaded = sfumato.load(folder)
    assert loaded.tiny is not None
    assert loaded.tiny.config == whole.tiny.config
    assert loaded.digest == model.digest
    latents = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(loaded.decode(latents, "tiny"), whole.decode(latents, "tiny"))
    torch.testing.assert_close(loaded.decode(latents), model.decode(latents))
    loaded.save(tmp_path / "copy")
    assert hashes(tmp_path / "copy") == hashes(folder)


def test_a_second_stage_takes_it_along(model: LatentDiffusion, tmp_path: Path) -> None:
    whole = with_tiny(model)
    assert build_model(second_run(), whole, latents_of(model, tmp_path)).tiny is whole.tiny


def test_one_of_another_autoencoder_is_refused(model: LatentDiffusion, tmp_path: Path) -> None:
    tiny = with_tiny(model).tiny
    assert tiny is not None
    other = first_model("train.seed=5")
    other.save(tmp_path)
    tiny.save(tmp_path)
    with pytest.raises(UserError, match=r"distilled from another autoencoder .*: remove the file"):
        sfumato.load(tmp_path)


def test_what_cannot_be_distilled_is_refused(model: LatentDiffusion) -> None:
    with pytest.raises(UserError, match="no decoder to distil"):
        tiny_decoder_config(QUICK, pixel_space((SIZE, SIZE)))
    minute = AutoencoderConfig(channels=1, channel_multipliers=(1, 1), bottleneck=KLConfig())
    with pytest.raises(UserError, match=r"so small that n.* has a 20th .*with channels"):
        tiny_decoder_config(Distillation(), build(ModelConfig(autoencoder=minute, image_size=(16, 16))))
    with pytest.raises(UserError, match=r"no tiny decoder: create one with `sfumato distill-decoder MODEL --data DIR`"):
        model.decode(torch.zeros(1, 3, 4, 4), "tiny")
