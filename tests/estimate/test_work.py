"""Forward and backward passes of training steps against torch's own count of what runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sfumato import flops
from sfumato.autoencoder.alignment import AlignmentConfig
from sfumato.autoencoder.losses import LogitAverages
from sfumato.autoencoder.perceptual import LPIPS, EfficientNetConfig, EfficientNetFeatures, LPIPSConfig, NoPerceptual
from sfumato.autoencoder.scaling import Scaling
from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.conditioning.table import ConditionerConfig, NoneConfig, build_conditioner
from sfumato.conditioning.text import TextConfig
from sfumato.config import parse
from sfumato.denoiser.table import build_denoiser
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.estimate import work
from sfumato.estimate.calls import network_call, network_calls
from sfumato.estimate.from_config import first_stage
from sfumato.estimate.memory import second_stage_activations
from sfumato.model import DiffusionConfig, LatentDiffusion, ModelConfig
from sfumato.sampling.table import SAMPLERS
from sfumato.training.autoencoder import build_stage1
from sfumato.training.autoencoder_run import AutoencoderRun, AutoencoderTraining
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.stage1_losses import DiscriminatorPass, discriminator_losses, generator_losses
from sfumato.training.workers import Workers

TOLERANCE = 0.02
SIZE = (32, 48)
MODEL = {"channels": 16, "channel_multipliers": [1, 2], "blocks_per_level": 1, "norm_groups": 8, "attention": "none"}


def run(kind: str, perceptual: dict[str, Any], **more: Any) -> AutoencoderRun:
    raw = {
        "model": {**MODEL, "bottleneck": {"kind": kind} if kind == "kl" else {"kind": kind, "codes": 64}},
        "data": {"kind": "toy", "size": list(SIZE)},
        "loss": {"adversarial": {"weight": 0.5, "start": 20, "warmup_steps": 5, "channels": 8, "layers": 2}},
    }
    raw["loss"]["perceptual"] = perceptual  # type: ignore[index]
    return parse(raw | more, AutoencoderRun, "x")


@pytest.mark.parametrize("step_kind", ["generator", "discriminator warm-up", "both"])
@pytest.mark.parametrize(("kind", "perceptual"), [("kl", "none"), ("vq", "efficientnet-lite0")])
def test_a_step_of_stage_one(kind: str, perceptual: str, step_kind: work.Stage1Step) -> None:
    count_a_step(run(kind, {"kind": perceptual}), step_kind)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_step_of_the_decoder_alone(kind: str, tmp_path: Path) -> None:
    config = run(kind, {"kind": "none"})
    built = build_stage1(config, Workers("cpu"))
    model = ModelConfig(autoencoder=config.model, image_size=SIZE)
    scaling = Scaling.from_factor(built.autoencoder.latent_channels, 1.0)
    LatentDiffusion(model, built.autoencoder, scaling).save(tmp_path / "model")
    config = run(kind, {"kind": "none"}, start=str(tmp_path / "model"), train={"part": "decoder"})
    count_a_step(config, "both")
    alone, whole = (first_stage(one, "x").memory for one in (config, run(kind, {"kind": "none"})))
    assert alone.weights == whole.weights
    assert alone.gradients < 0.7 * whole.gradients
    assert alone.optimiser < 0.7 * whole.optimiser
    assert alone.activations < 0.8 * whole.activations


def count_a_step(config: AutoencoderRun, step_kind: work.Stage1Step) -> None:
    built = build_stage1(config, Workers("cpu"))
    image = torch.rand(2, 3, *SIZE)
    with FlopCounterMode(display=False) as counter:
        encoding = built.autoencoder.encode(image)
        output = built.autoencoder.decode(encoding.z, quantize=False)
        strength = float(step_kind == "both")
        total, _ = generator_losses(config.loss, built, image, output, encoding, strength, Workers("cpu"))
        total.backward()
        if step_kind != "generator":
            assert built.discriminator is not None
            adversarial = config.loss.adversarial
            real, fake = DiscriminatorPass(built.discriminator)(image, output)
            total, _ = discriminator_losses(adversarial, real, fake, LogitAverages())
            total.backward()
    assert work.first_stage(config, step_kind).total * 2 == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_the_perceptual_networks() -> None:
    with torch.device("meta"):
        lpips = LPIPS()
    for config, network, device in (
        (LPIPSConfig(backbone="a", heads="b"), lpips.features, "meta"),  # type: ignore[arg-type]
        (EfficientNetConfig(), EfficientNetFeatures().net, "cpu"),
    ):
        image = torch.zeros(1, 3, *SIZE, device=device)
        with FlopCounterMode(display=False) as counter:
            network(image)
        assert flops.perceptual_features(config, SIZE) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
    assert flops.perceptual_features(NoPerceptual(), SIZE) == 0


CONDITIONERS: dict[str, ConditionerConfig] = {
    "none": NoneConfig(),
    "class": ClassConfig(classes=5, dim=24),
    "text": TextConfig(dim=32, depth=2, heads=2, head_dim=8, max_tokens=12, tokenizer="none", vocabulary=200),
}


@pytest.mark.parametrize("name", CONDITIONERS)
def test_a_step_of_stage_two(name: str) -> None:
    """On the meta device, where attention is counted as its matrix products, both ways."""
    denoiser = UNetConfig(channels=32, channel_multipliers=(1, 2), attention_factors=(2,), scale_shift_norm=True)
    config = DiffusionConfig(denoiser=denoiser, conditioner=CONDITIONERS[name], schedule=ScaledLinearConfig())
    latent, B = (4, 16, 24), 3
    with torch.device("meta"):
        conditioner = build_conditioner(config.conditioner)
        spec = ConditionSpec() if conditioner is None else conditioner.spec
        networks = ConditionalDenoiser(build_denoiser(denoiser, latent[0], spec), conditioner)
        x_t, t = torch.zeros(B, *latent), torch.zeros(B)
    fields: dict[str, Any] = {"label": torch.zeros(B, dtype=torch.long), "tokens": torch.ones(B, 12, dtype=torch.long)}
    if name == "text":
        assert conditioner is not None
        conditioner.transformer.check = lambda ids: None  # type: ignore[union-attr,method-assign]
    with FlopCounterMode(display=False) as counter:
        networks(x_t, t, fields).sum().backward()
    expected = work.second_stage(config, latent, spec)
    assert expected.total * B == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        networks(x_t, t, fields)
    assert expected.forward * B == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_the_line_ups_of_a_run() -> None:
    adversarial = run("kl", {"kind": "none"}).loss.adversarial
    assert list(work.phases(adversarial, 100)) == [("generator", 15), ("discriminator warm-up", 5), ("both", 80)]
    assert list(work.phases(adversarial, 18)) == [("generator", 15), ("discriminator warm-up", 3)]
    assert list(work.phases(adversarial.model_copy(update={"weight": 0.0}), 18)) == [("generator", 18)]


def test_calls_of_every_sampler() -> None:
    schedule = build_schedule(ScaledLinearConfig())
    for name, facts in SAMPLERS.items():
        calls = network_calls(facts.config(), schedule, 10)  # type: ignore[arg-type]
        assert 10 * facts.calls - 1 <= calls <= 10 * facts.calls + 1, name
    assert network_calls(SAMPLERS["plms"].config(), schedule, 10) == 11  # type: ignore[arg-type]
    assert network_calls(SAMPLERS["heun"].config(), schedule, 10) == 19  # type: ignore[arg-type]


def test_a_image_is_its_calls_and_the_decoding() -> None:
    config = DiffusionConfig(denoiser=UNetConfig(channels=32), schedule=ScaledLinearConfig())
    first = run("kl", {"kind": "none"}).model
    size = (32, 32)
    costs = [work.image(first, config, size, ConditionSpec(), guided=False).of(n) for n in (1, 2)]
    assert costs[1] - costs[0] == network_call(config, (4, 16, 16), ConditionSpec())
    assert 2 * costs[0] - costs[1] == flops.decode(first, size)
    guided = work.image(first, config, size, ConditionSpec(), guided=True).of(1)
    assert guided == costs[1]


def test_checkpointing_keeps_the_blocks_inputs_and_the_largest_block() -> None:
    config = DiffusionConfig(
        denoiser=UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=()),
        conditioner=NoneConfig(),
        schedule=ScaledLinearConfig(),
    )
    latent, batch = (4, 16, 24), 3
    straight = second_stage_activations(config, latent, ConditionSpec(), batch, False)
    again = second_stage_activations(config, latent, ConditionSpec(), batch, False, checkpointing=True)
    # channels into each block at full and at half size; a decoder's block takes a skip connection beside its input
    whole, half = 4 + 32 + 32 + (64 + 32) + (32 + 32), 32 + (64 + 64) + 64 + (64 + 32)
    inputs = 4 * batch * (whole * 16 * 24 + half * 8 * 12)
    assert inputs < again < straight / 2


def test_alignment_counts_its_features_and_the_gradient_that_balances_it() -> None:
    plain = run("kl", {"kind": "none"})
    loss = plain.loss.model_copy(update={"alignment": AlignmentConfig(weight=0.1, features="efficientnet-lite0@32")})
    aligned = plain.model_copy(update={"loss": loss})
    network = work.aligned_network(aligned)
    assert network is not None
    with FlopCounterMode(display=False) as counter:
        network.maps(torch.zeros(1, 3, *SIZE))
    before, after = work.first_stage(plain, "generator"), work.first_stage(aligned, "generator")
    assert after.forward - before.forward == counter.get_total_flops() > 0
    decoder = work.first_stage(plain.model_copy(update={"train": frozen(plain)}), "generator").backward
    assert after.backward - before.backward == pytest.approx(decoder, rel=0.5)
    assert first_stage(aligned, "x").parameters["features"] > 0


def frozen(config: AutoencoderRun) -> AutoencoderTraining:
    """The training of the decoder alone."""
    return config.train.model_copy(update={"part": "decoder"})
