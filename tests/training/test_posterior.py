"""Which latents of the posterior a denoiser is trained on: samples, or the mean."""

from pathlib import Path

import pytest
import torch

from runs import first_model, latents_of, second_run
from sfumato.autoencoder.model import Autoencoder
from sfumato.diffusion.schedule import build_schedule
from sfumato.training import teaching
from sfumato.training.second_stage import build_model
from sfumato.training.step_noise import step_noise
from sfumato.training.workers import Workers


@pytest.mark.parametrize("latents", ["sample", "mean"])
def test_the_mean_takes_no_noise_and_the_other_numbers_stay(latents: str) -> None:
    config = second_run(f"objective.latents={latents}", "train.accumulate=2")
    schedule = build_schedule(config.schedule)
    made = step_noise(config.train, config.objective, schedule, (3, 8, 8), 0.1, 5, Workers())
    usual = second_run("train.accumulate=2")
    others = step_noise(usual.train, usual.objective, schedule, (3, 8, 8), 0.1, 5, Workers())
    for one, other in zip(made, others, strict=True):
        assert torch.equal(one.noise, other.noise)
        assert torch.equal(one.t, other.t)
        assert other.posterior is not None
        assert one.posterior is None if latents == "mean" else torch.equal(one.posterior, other.posterior)


def test_a_model_says_what_it_was_trained_on_and_its_student_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student by mean flow sees the latents that its teacher saw."""
    first = first_model()
    model = build_model(second_run("objective.latents=mean"), first, latents_of(first, tmp_path))
    assert model.second is not None
    assert model.second.config.latents == "mean"
    seen = []
    monkeypatch.setattr(Autoencoder, "latent_from_moments", lambda self, moments, noise=None: seen.append(noise))
    monkeypatch.setattr(type(first.scaling), "to_model", lambda self, latent: latent)
    for kind in ("mean", "sample"):
        teacher = type("Teacher", (), {"autoencoder": first.autoencoder, "scaling": first.scaling, "latents": kind})
        flow = teaching.MeanFlow.__new__(teaching.MeanFlow)
        flow.teacher = teacher  # type: ignore[assignment]
        flow._latents(torch.zeros(2, 6, 8, 8), lambda name: torch.Generator().manual_seed(0))
    assert seen[0] is None
    assert seen[1] is not None
