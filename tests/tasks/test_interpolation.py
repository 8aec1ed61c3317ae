"""Interpolation ends in the images it goes between; inversion finds what sampling came from."""

import pytest
import torch

import tiny
from sfumato.errors import UserError
from sfumato.pipeline.request import SampleRequest
from sfumato.tasks.interpolation import Stop, interpolate
from sfumato.tasks.inversion import INVERSION_GRID, find_noise

OPTIONS = {"steps": 3, "sampler": "ddim", "guidance": 2.0}


def test_a_way_ends_in_the_images_it_goes_between() -> None:
    model = tiny.model()
    stops = [Stop(5, tiny.TEXTS[0]), Stop(7, tiny.TEXTS[1]), Stop(7, tiny.TEXTS[2])]
    frames = interpolate(model, stops, 3, SampleRequest(**OPTIONS))
    assert len(frames) == 5
    for place, stop in zip((0, 2, 4), stops, strict=True):
        alone = model.sample_tensor(stop.text, seed=stop.seed, **OPTIONS)
        torch.testing.assert_close(frames[place : place + 1], alone, atol=1e-4, rtol=1e-4)
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    whole = (frames[2] - frames[0]).abs().mean()
    assert (steps[:2] < whole).all(), "the frame between two is between them"
    plain = interpolate(tiny.model(tiny.UNCONDITIONAL), [Stop(1), Stop(2)], 2, SampleRequest(steps=2, sampler="ddpm"))
    assert len(plain) == 2
    with pytest.raises(UserError, match="1 stops and 3 frames"):
        interpolate(model, stops[:1], 3)


def test_inversion_finds_the_noise_and_reports_the_loss() -> None:
    model = tiny.model(tiny.UNCONDITIONAL)
    for parameter in model.second.denoiser.out.parameters():  # type: ignore[union-attr]
        parameter.mul_(0.3)  # a network this wild has no unique inverse
    options = {"count": 2, "steps": 8, "sampler": "ddim", "grid": INVERSION_GRID}
    noise = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    images = model.sample_tensor(noise=noise, **options)
    rough, fine = (find_noise(model, images, steps=8, refinements=n) for n in (0, 4))
    torch.testing.assert_close(rough.reconstructed, model.decode(model.encode(images)))
    torch.testing.assert_close(fine.resampled, model.sample_tensor(noise=fine.noise, **options))
    errors = [(found.resampled - found.reconstructed).abs().mean().item() for found in (rough, fine)]
    assert errors[1] < 0.2 * errors[0]
    assert errors[1] < 0.02
