"""Every option of `model.sample`, against the same thing written out or against its definition."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from sfumato.conditioning.condition import between
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pipeline.choices import sampler_named
from sfumato.pipeline.denoise import Guidance
from sfumato.pipeline.latents import known_region
from sfumato.pipeline.pipeline import network_of
from sfumato.pipeline.plan import plan
from sfumato.pipeline.request import ImageGuidance, Projection, SampleRequest
from sfumato.rng import SampleNoise
from sfumato.sampling.ancestral import DDIM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.guidance import Trajectory, autoguidance
from sfumato.sampling.image_losses import Colour, FeatureMatch, LowResolution, Together
from sfumato.sampling.loop import sample

STEPS = 3


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny.model()


@pytest.fixture(scope="module")
def plain() -> LatentDiffusion:
    return tiny.model(tiny.UNCONDITIONAL)


def sampled(model: LatentDiffusion, prompt: object = tiny.TEXTS[:2], **options: object) -> Tensor:
    return model.sample_tensor(prompt, **{"steps": STEPS, "sampler": "ddim", **options})  # type: ignore[arg-type]


# ---- auto


@pytest.mark.parametrize(
    ("schedule", "steps", "sampler", "grid"),
    [
        ("{kind: scaled-linear}", 4, "unipc", "trailing"),
        ("{kind: scaled-linear}", 10, "unipc", "log-snr"),
        ("{kind: scaled-linear}", 20, "dpmpp-2m", "log-snr"),
        ("{kind: cosine}", 10, "unipc", "trailing"),
        ("{kind: flow}", 30, "dpmpp-2m", "trailing"),
    ],
)
def test_auto_reports_its_choice_and_why(schedule: str, steps: int, sampler: str, grid: str) -> None:
    model = tiny.model(f"diffusion.schedule={schedule}")
    choice = plan(model, SampleRequest(prompt="a", steps=steps)).choice
    assert (choice.sampler.kind, choice.grid.kind) == (sampler, grid)
    assert f"{steps} steps are" in choice.reason
    assert "guidance 3" in choice.reason
    named = plan(model, SampleRequest(prompt="a", steps=steps, sampler="euler")).choice
    assert (named.sampler.kind, named.reason) == ("euler", "")
    own = plan(model, SampleRequest(prompt="a", steps=steps, grid=GridConfig(kind="karras"))).choice
    assert (own.sampler.kind, own.grid.kind) == (sampler, "karras")


# ---- guidance


def test_a_scale_and_a_negative_text_for_each(model: LatentDiffusion) -> None:
    together = sampled(model, guidance=[1.0, 4.0], negative=["a blue disc", "a green hill"])
    for i, (scale, negative) in enumerate([(1.0, None), (4.0, "a green hill")]):
        alone = sampled(model, tiny.TEXTS[i], guidance=scale, negative=negative, seed=i)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert (together[1:] - sampled(model, tiny.TEXTS[1], guidance=4.0, seed=1)).abs().max() > 1e-3


def test_rescaling_and_projection_reach_the_sampler_and_begin_anew_with_each_batch(model: LatentDiffusion) -> None:
    usual = sampled(model, guidance=6.0)
    assert torch.equal(sampled(model, guidance=6.0, projection=Projection(parallel=1.0)) - usual < 1e-3, usual == usual)
    for options in (
        {"rescale": 0.7},
        {"projection": Projection()},
        {"projection": Projection(parallel=0.2, limit=1.0, momentum=-0.5), "rescale": 0.5},
    ):
        changed = sampled(model, guidance=6.0, **options)
        assert (changed - usual).abs().max() > 1e-3
        torch.testing.assert_close(sampled(model, guidance=6.0, batch=1, **options), changed, atol=1e-4, rtol=1e-4)


def test_autoguidance_leads_away_from_the_weaker_model(model: LatentDiffusion) -> None:
    weaker = tiny.model()
    assert weaker.second is not None
    assert model.second is not None
    for parameter in weaker.second.denoiser.parameters():
        parameter.data *= 0.9
    found = sampled(model, autoguide=weaker, autoguide_scale=1.7, interval=(0.2, 1.0))
    denoise = autoguidance(
        *(network_of(m).denoise(tiny.conditions(m, 2, tiny.TEXTS[:2])[0]) for m in (model, weaker)), 1.7, (0.2, 1.0)
    )
    grid = build_grid(GridConfig(kind="leading"), model.second.schedule, STEPS)
    with torch.no_grad():
        x = SampleNoise([0, 1])((2, *model.latent_shape))
        expected = model.decode(sample(DDIM(), model.second.schedule, denoise, x, grid, SampleNoise([0, 1])))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sampled(model, autoguide=model), sampled(model, guidance=1.0), atol=1e-4, rtol=1e-4)


def test_a_weaker_model_of_another_latent_space_is_refused(model: LatentDiffusion) -> None:
    other = tiny.model("diffusion.schedule={kind: cosine}")
    with pytest.raises(UserError, match="another noise schedule"):
        sampled(model, autoguide=other)
    other = tiny.model()
    other.scaling.scale[0] *= 2
    with pytest.raises(UserError, match="another scaling of latents than this model: give an earlier"):
        sampled(model, autoguide=other)


@pytest.mark.parametrize("kind", ["low-res", "features", "both"])
def test_image_guidance_approaches_its_target(plain: LatentDiffusion, kind: str) -> None:
    low = torch.rand(1, 3, 2, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    red = torch.tensor([0.3, -0.3, -0.2])
    losses = {
        "low-res": LowResolution(low),
        "colour": Colour(red),
        "features": FeatureMatch(lambda x: [x.mean((2, 3)), x[..., ::4, ::4]], torch.full((1, 3, 16, 24), 0.2)),
    }
    losses["both"] = Together((losses["low-res"], losses["colour"]))
    loss = losses[kind]
    free = sampled(plain, None, count=2, steps=5)
    led = sampled(plain, None, count=2, steps=5, image_guidance=ImageGuidance(loss))
    assert (loss(led) < (0.5 if kind == "low-res" else 0.85) * loss(free)).all(), (loss(led), loss(free))
    if kind == "both":
        nothing = sampled(
            plain, None, count=2, steps=5, image_guidance=ImageGuidance(lambda images: 0 * images.mean((1, 2, 3)))
        )
        assert torch.equal(nothing, free)


def test_packed_networks_refuse_image_guidance() -> None:
    packed = tiny.model(tiny.UNCONDITIONAL).for_inference(torch.float32)
    with pytest.raises(UserError, match="without for_inference"):
        sampled(packed, None, image_guidance=ImageGuidance(Colour(torch.zeros(3))))


def test_colour_of_a_image() -> None:
    image = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert Colour.of(image)(image[None]).item() == pytest.approx(0, abs=1e-8)
    assert Colour.of(image)(image[None] * 0.5 + 0.1).item() > 1e-3


# ---- a known region


@pytest.mark.parametrize("name", ["ddpm", "unipc", "plms"])
def test_any_sampler_keeps_a_known_region(plain: LatentDiffusion, name: str) -> None:
    known = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) - 0.5
    keep = torch.ones(1, 1, 16, 24)
    keep[..., 9:] = 0
    seen: list[Tensor] = []
    region = known_region(plain, known, keep)
    options = {**region, "jumps": (1, 2), "count": 2, "sampler": name}
    images = sampled(plain, None, **options, callback=lambda step: seen.append(step.x))
    assert images.shape == (2, 3, 16, 24)
    assert torch.isfinite(images).all()
    jumped = plan(plain, SampleRequest(**{**options, "steps": STEPS}))
    assert len(seen) == jumped.steps > STEPS
    # one latent column straddles the border: it is generated
    latents = plain.encode(known)
    assert region["keep"][0, 0, 0].tolist() == [1] * 4 + [0] * 8
    everywhere = sampled(plain, None, **{**options, "keep": torch.ones_like(region["keep"]), "jumps": None})
    torch.testing.assert_close(everywhere, plain.decode(latents).expand(2, -1, -1, -1), atol=1e-4, rtol=1e-4)


def test_the_error_about_a_known_region_names_what_is_missing(plain: LatentDiffusion) -> None:
    known, keep = torch.zeros(1, 3, 8, 12), torch.ones(1, 1, 8, 12)
    for options, message in (
        ({"known": known}, "known and keep require each other"),
        ({"known": known, "keep": keep[..., :8]}, r"keep has the shape \(1, 1, 8, 8\), 1 samples need \(1, 1, 8, 12\)"),
        ({"jumps": (2, 2)}, "jumps require known and keep"),
        (
            {"known": known.expand(3, -1, -1, -1), "keep": keep, "count": 2},
            r"known has the shape \(3, 3, 8, 12\), 2 samples need",
        ),
    ):
        with pytest.raises(UserError, match=message):
            sampled(plain, None, **options)


# ---- start and conditions


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_given_noise_and_conditions_are_those_of_seeds_and_prompts(model: LatentDiffusion, sampler: str) -> None:
    usual = sampled(model, sampler=sampler, guidance=2.0, seed=3)
    noise = SampleNoise([3, 4])((2, *model.latent_shape))
    condition, _ = tiny.conditions(model, 2, tiny.TEXTS[:2])
    given = sampled(model, None, sampler=sampler, guidance=2.0, seed=3, noise=noise, condition=condition)
    assert torch.equal(given, usual)
    with pytest.raises(UserError, match=r"noise has the shape \(2, 3, 8, 12\), 3 samples need \(3, 3, 8, 12\)"):
        sampled(model, "a", count=3, noise=noise)


def test_conditions_between_two_prompts(model: LatentDiffusion) -> None:
    a, b = (tiny.conditions(model, 1, [text])[0] for text in tiny.TEXTS[:2])
    path = between(a, b, torch.tensor([0.0, 0.25, 1.0]))
    assert a.tokens is not None
    assert b.tokens is not None
    assert path.tokens is not None
    torch.testing.assert_close(path.tokens, torch.cat([a.tokens, 0.75 * a.tokens + 0.25 * b.tokens, b.tokens]))
    with pytest.raises(ValueError, match="different fields"):
        between(a, replace(b, tokens=None), torch.zeros(1))


# ---- what a sampler cannot do


def test_what_cannot_start_from_pure_noise_is_refused_at_once() -> None:
    flow = tiny.model("diffusion.schedule={kind: flow}", "diffusion.prediction=flow")
    with pytest.raises(UserError, match=r"'plms' cannot start where alpha is 0 .*: use 'dpmpp-2m', or grid 'leading'"):
        sampled(flow, sampler="plms", grid=GridConfig(kind="trailing"))
    eps = tiny.model("diffusion.schedule={kind: scaled-linear, zero_terminal_snr: true}", "diffusion.prediction=eps")
    with pytest.raises(UserError, match=r"predicts the noise \(eps\).*choose grid 'leading'"):
        sampled(eps, sampler="dpmpp-2m")
    assert torch.isfinite(sampled(eps, sampler="dpmpp-2m", grid=GridConfig(kind="leading"))).all()


def test_the_interval_and_the_names_are_checked_even_without_guidance(plain: LatentDiffusion) -> None:
    with pytest.raises(UserError, match=r"interval is 1\.5: give a number from 0 to 1"):
        sampled(plain, None, interval=(0.5, 1.5))
    with pytest.raises(UserError, match=r"'heum' is not one of auto, ddpm.*did you mean 'heun'"):
        sampled(plain, None, sampler="heum")
    assert Guidance().combine(Trajectory())(torch.ones(1), torch.zeros(1), 2.0).item() == 2.0
    assert sampler_named("unipc", order=3).order == 3  # type: ignore[union-attr]
