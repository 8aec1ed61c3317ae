"""The spine, against the same thing written out: one pass for each half of guidance, one sample at a time."""

import pytest
import torch
from torch import Tensor

import tiny
from sfumato.diffusion.prediction import to_x0
from sfumato.diffusion.process import add_noise, network_time
from sfumato.model import LatentDiffusion
from sfumato.pipeline import latents as codec
from sfumato.pipeline.choices import sampler_named
from sfumato.pipeline.denoise import Guidance, Network, guided
from sfumato.rng import SampleNoise
from sfumato.sampling.grids import build_grid
from sfumato.sampling.loop import sample
from sfumato.sampling.table import build_sampler, default_grid

B = 3
TIMES = [1.0, 0.4, 0.001]


def parts(model: LatentDiffusion) -> tuple:
    second = model.second
    assert second is not None
    condition, null = tiny.conditions(model, B, tiny.TEXTS)
    return second.denoiser, second.schedule, second.config.prediction, condition, null


def noisy(model: LatentDiffusion) -> Tensor:
    return torch.randn(B, *model.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("t", TIMES)
def test_the_doubled_batch_is_two_passes(t: float) -> None:
    model = tiny.model()
    denoiser, schedule, prediction, condition, null = parts(model)
    x_t, time = noisy(model), torch.tensor(t, dtype=torch.float64)
    found = guided(Network(denoiser, schedule, prediction), condition, null, Guidance(3.0))(x_t, time)
    alpha, sigma = schedule(time)
    timestep = network_time(time, schedule.steps).float().expand(B)
    given, without = (denoiser(x_t, timestep, c) for c in (condition, null))
    # the paper's form, on the predictions: eq. of Ho & Salimans with s = 1 for no guidance
    expected = to_x0(prediction, without + 3.0 * (given - without), x_t, alpha, sigma)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


class Counting(torch.nn.Module):
    """A denoiser that notes the sizes of the batches it is called with."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner, self.sizes = inner, []

    def forward(self, x_t: Tensor, timestep: Tensor, condition: object) -> Tensor:
        self.sizes.append(len(x_t))
        out: Tensor = self.inner(x_t, timestep, condition)
        return out


def test_no_guidance_costs_one_pass_and_is_exact() -> None:
    model = tiny.model()
    denoiser, schedule, prediction, condition, null = parts(model)
    counting = Counting(denoiser)
    x_t, time = noisy(model), torch.tensor(0.5, dtype=torch.float64)
    plain = Network(denoiser, schedule, prediction).denoise(condition)(x_t, time)
    for guidance in (Guidance(1.0), Guidance(4.0, interval=(0.6, 0.9))):
        assert torch.equal(guided(Network(counting, schedule, prediction), condition, null, guidance)(x_t, time), plain)
    assert counting.sizes == [B, B]
    guided(Network(counting, schedule, prediction), condition, null, Guidance(4.0, interval=(0.4, 0.9)))(x_t, time)
    assert counting.sizes[-1] == 2 * B


def test_the_denoise_function_finds_the_clean_latent_a_perfect_network_knows() -> None:
    model = tiny.model("diffusion.prediction=eps")
    second = model.second
    assert second is not None
    x0, noise = noisy(model), torch.randn(B, *model.latent_shape)
    condition, _ = tiny.conditions(model, B, tiny.TEXTS)
    for t in (0.3, 0.7):
        time = torch.tensor(t, dtype=torch.float64)
        x_t = add_noise(second.schedule, x0, noise, time)
        denoise = Network(lambda *_: noise, second.schedule, "eps").denoise(condition)  # type: ignore[arg-type]
        torch.testing.assert_close(denoise(x_t, time), x0, atol=1e-4, rtol=1e-4)


def test_sampling_is_the_loop_then_unscaling_then_decoding() -> None:
    model = tiny.model()
    denoiser, schedule, prediction, condition, null = parts(model)
    sampler = sampler_named("ddim")
    grid = build_grid(default_grid(sampler, schedule), schedule, 3)
    denoise = guided(Network(denoiser, schedule, prediction), condition, null, Guidance(2.0))
    noise = SampleNoise([4, 5, 6])
    with torch.no_grad():
        x = noise((B, *model.latent_shape))
        latent = sample(build_sampler(sampler), schedule, denoise, x, grid, noise)
    raw = latent / model.scaling.scale[:, None, None] + model.scaling.shift[:, None, None]
    expected = model.autoencoder.decode(raw)
    found = model.sample(tiny.TEXTS, steps=3, sampler="ddim", guidance=2.0, seed=4, as_tensor=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_image_that_is_not_finite_is_decoded_again_in_float32() -> None:
    model = tiny.model()
    decode, seen = model.autoencoder.decode, []

    def overflowing(z: Tensor, quantize: bool = True) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        image = decode(z, quantize)
        return image * float("inf") if seen[-1] else image

    model.autoencoder.decode = overflowing  # type: ignore[method-assign]
    latent = noisy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = codec.decode(model.autoencoder, model.scaling, latent, batch=2)
    assert seen == [True, False, True, False]
    assert image.dtype == torch.float32
    assert bool(torch.isfinite(image).all())


@pytest.mark.parametrize("overrides", [[], [tiny.VQ]], ids=["kl", "vq"])
def test_reconstruction_goes_by_the_posteriors_mean(overrides: list[str]) -> None:
    model = tiny.model(*overrides)
    images = torch.rand(5, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latent = model.autoencoder.latent_from_moments(model.autoencoder.encode(images).moments)
    torch.testing.assert_close(
        model.reconstruct(images, batch=2), model.autoencoder.decode(latent), atol=1e-5, rtol=1e-4
    )
