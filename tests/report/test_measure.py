"""Measuring: the prompts, the chance level, the steps of a strip; on a tiny untrained model."""

import pytest
import torch
from fabricated import WORLD

from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.text import TextConfig
from sfumato.conditioning.tokenizer import fit_tokenizer
from sfumato.data.toyworld.scene import reserved
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import CosineConfig
from sfumato.evaluation.image_quality import psnr
from sfumato.model import DiffusionConfig, LatentDiffusion, ModelConfig, build
from sfumato.report.machine import describe, processor
from sfumato.report.measure import (
    build_prompts,
    chance_row,
    denoising_strip,
    first_stage,
    latent_maps,
    sample,
    score_row,
)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    made = build(
        ModelConfig(
            autoencoder=AutoencoderConfig(channels=8, channel_multipliers=(1, 1, 1), blocks_per_level=1),
            image_size=(64, 64),
            diffusion=DiffusionConfig(
                denoiser=UNetConfig(
                    channels=32, channel_multipliers=(1,), blocks_per_level=1, attention_factors=(), head_channels=32
                ),
                conditioner=TextConfig(dim=32, depth=1, heads=1, head_dim=32, max_tokens=32, vocabulary=512),
                condition_dropout=0.1,
                schedule=CosineConfig(),
            ),
        ),
        fit_tokenizer(WORLD.build().captions() or [], 512),
    )
    for part in made.parts().values():
        part.eval().requires_grad_(False)
    return made


def test_prompts_are_the_captions_of_their_scenes() -> None:
    prompt_set = build_prompts(WORLD, 12)
    world = WORLD.model_copy(update={"split": "held-out", "length": 12}).build()
    assert prompt_set.captions == [world[i].fields["text"] for i in range(12)]
    assert torch.equal(
        ((prompt_set.images + 1) * 127.5).round().byte(), torch.stack([e.image for e in world.examples(range(12))])
    )
    assert all(reserved(world.scene(i)) for i in range(12))
    assert not any(reserved(WORLD.build().scene(i)) for i in range(12))
    assert score_row("real", prompt_set.prompts, prompt_set.images).rates["facts"] == 1
    assert sum(prompt_set.facts_by_kind().values()) == sum(len(p.facts) for p in prompt_set.prompts)


def test_chance_is_far_below_one_and_never_compares_a_prompt_with_its_own_scene() -> None:
    assert chance_row("chance", build_prompts(WORLD, 48)).rates["facts"] < 0.4
    assert chance_row("chance", build_prompts(WORLD, 2)).rates["prompts"] < 1


def test_first_stage_numbers_are_those_of_its_images(model: LatentDiffusion) -> None:
    prompt_set = build_prompts(WORLD, 6)
    numbers, output = first_stage(model, prompt_set.images)
    assert output.shape == prompt_set.images.shape
    assert output.abs().max() <= 1
    assert numbers.psnr == pytest.approx(psnr(output, prompt_set.images).mean().item())
    assert (numbers.latent_shape, numbers.factor, numbers.compression) == ((4, 16, 16), 4, 12)
    assert len(numbers.channels) == 4
    assert numbers.bits_per_dimension is not None
    assert numbers.bits_per_dimension > 0
    mean = torch.stack([model.autoencoder.encode(i[None]).z[0] for i in prompt_set.images]).mean(dim=(0, 2, 3))
    assert [c.mean for c in numbers.channels] == pytest.approx(mean.tolist(), abs=1e-5)
    assert latent_maps(model, prompt_set.images[0]).shape == (4, 3, 16, 16)


def test_a_strip_starts_in_noise_and_ends_in_the_sample(model: LatentDiffusion) -> None:
    captions, seeds = build_prompts(WORLD, 2).captions, [5, 6]
    strip = denoising_strip(model, captions, seeds, 3.0, 6, 4)
    assert 2 <= len(strip.times) == len(strip.images) <= 4
    assert strip.images.shape[1:] == (2, 3, 64, 64)
    assert (strip.steps[0], strip.steps[-1]) == (1, 6)
    assert strip.times[0] == pytest.approx(1, abs=1e-3)
    assert list(strip.times) == sorted(strip.times, reverse=True)
    final = model.sample_tensor(captions, guidance=3.0, steps=6, seeds=seeds).clamp(-1, 1)
    torch.testing.assert_close(strip.images[-1], final, atol=1e-4, rtol=0)


def test_an_image_depends_on_its_index_alone(model: LatentDiffusion) -> None:
    captions = build_prompts(WORLD, 3).captions
    torch.testing.assert_close(
        sample(model, captions, 1.0, 2)[:2], sample(model, captions[:2], 1.0, 2), atol=1e-4, rtol=0
    )


def test_a_machine_has_a_name_and_cores(tmp_path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor : 0\nmodel name : Some CPU @ 3 GHz\n")
    assert processor(listing) == "Some CPU @ 3 GHz"
    assert processor(tmp_path / "absent")
    here = describe(torch.device("cpu"))
    assert here.cores >= 1
    assert here.device
