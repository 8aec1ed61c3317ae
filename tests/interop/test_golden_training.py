"""Imported models against what the original recorded around sampling: buffers, forward process, losses, averages."""

from collections.abc import Callable

import pytest
import torch
from test_golden import DIFFUSIONS, NETWORK, condition, open_model
from torch import Tensor, nn

from parity import golden, needs_parity, relative_error
from sfumato.conditioning.condition import Condition
from sfumato.diffusion.objective import ObjectiveConfig, loss
from sfumato.diffusion.prediction import to_x0
from sfumato.diffusion.process import add_noise, network_time, posterior, prior_bits, time_of_index
from sfumato.diffusion.schedule import DiscreteSchedule
from sfumato.diffusion.weighting import elbo_weight
from sfumato.interop.buffers import lvlb_weights, schedule_buffers
from sfumato.interop.original import Imported
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.nn.embeddings import timestep_embedding
from sfumato.pipeline.denoise import Network
from sfumato.sampling.ancestral import DDIM, DDPM
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.loop import Step, sample
from sfumato.training.averages import ema

pytestmark = needs_parity
BUFFERS, TRAINING = 1e-6, 1e-5
GRADIENTS = 1e-4


@pytest.fixture(params=DIFFUSIONS)
def opened(request: pytest.FixtureRequest, imported: Callable[..., Imported]) -> tuple[str, LatentDiffusion]:
    return request.param, open_model(imported(request.param, "live"))


def test_the_rest_of_a_recording(opened: tuple[str, LatentDiffusion], imported: Callable[..., Imported]) -> None:
    """One test, for the sake of one opened model: each part below compares other names."""
    name, model = opened
    g, second = golden(name), model.second
    assert second is not None
    given = condition(model, g)
    assert given is not None
    with torch.no_grad():
        buffers(g, second.schedule)
        forward_process(g, second)
        steps(g, second, given)
        averages(g, second, open_model(imported(name)))
    training(g, model)


def buffers(g: dict[str, Tensor], schedule: object) -> None:
    assert isinstance(schedule, DiscreteSchedule)
    found = schedule_buffers(schedule.betas)
    found["lvlb_weights"] = lvlb_weights(found)
    exact = elbo_weight("eps", schedule, time_of_index(torch.arange(1000), 1000))
    assert relative_error(exact, g["schedule/lvlb_weights"]) <= TRAINING
    assert {f"schedule/{key}" for key in found} == {key for key in g if key.startswith("schedule/")}
    for key, value in found.items():
        assert relative_error(value, g[f"schedule/{key}"]) <= BUFFERS, key
    if "ddim/timesteps" not in g:
        return
    grid = build_grid(GridConfig(kind="leading"), schedule, 5)
    alpha, sigma = schedule(grid)
    assert torch.equal(network_time(grid[:-1], 1000).long().flip(0), g["ddim/timesteps"])
    assert relative_error(alpha[:-1].square().flip(0), g["ddim/alphas"]) <= BUFFERS
    assert relative_error(alpha[1:].square().flip(0), g["ddim/alphas_prev"]) <= BUFFERS
    assert relative_error(sigma[:-1].flip(0), g["ddim/sqrt_one_minus_alphas"]) <= BUFFERS


def forward_process(g: dict[str, Tensor], second: SecondStage) -> None:
    schedule, t = second.schedule, time_of_index(g["in/t"], second.schedule.steps)
    assert relative_error(add_noise(schedule, g["in/x0"], g["in/noise"], t), g["diff/q_sample"]) <= BUFFERS
    clean = to_x0("eps", g["in/noise"], g["in/z_noisy"], *schedule(t))
    assert relative_error(clean, g["diff/pred_x0"]) <= BUFFERS
    back = posterior(schedule, g["in/x0"], g["in/z_noisy"], t, t - 1 / schedule.steps)
    assert relative_error(back.mean, g["diff/q_posterior_mean"]) <= BUFFERS
    assert relative_error(back.variance.log(), g["diff/q_posterior_logvar"].flatten()) <= BUFFERS
    assert (prior_bits(schedule, g["in/x0"]) - g["diff/prior_bpd"]).abs().max() <= 1e-7  # a difference of large terms
    width = second.config.denoiser.channels
    assert relative_error(timestep_embedding(g["in/t"], width), g["unet/t_emb"]) <= NETWORK


def steps(g: dict[str, Tensor], second: SecondStage, given: Condition) -> None:
    """The last step of DDPM alone, and the clean latents that DDIM saw on its way."""
    denoise = Network(second.denoiser, second.schedule, "eps").denoise(given)
    last = torch.tensor([1 / second.schedule.steps, 0.0], dtype=torch.float64)
    found = sample(DDPM(), second.schedule, denoise, g["in/x_T"], last, torch.randn)
    assert relative_error(found, g["ddpm/p_sample_t0"]) <= NETWORK
    if "ddim/pred_x0" not in g:
        return
    seen: list[Step] = []
    grid = build_grid(GridConfig(kind="leading"), second.schedule, 5)
    sample(DDIM(), second.schedule, denoise, g["in/x_T"], grid, torch.randn, seen.append)
    assert relative_error(seen[0].x0, g["ddim/pred_x0"][1]) <= NETWORK
    assert relative_error(seen[-1].x0, g["ddim/pred_x0"][2]) <= 10 * NETWORK


def averages(g: dict[str, Tensor], live: SecondStage, averaged: LatentDiffusion) -> None:
    """The next update after the 4321 that the file counts."""
    assert averaged.second is not None
    shadow = averaged.second.denoiser
    weight = "time_embed.0.weight"
    assert torch.equal(shadow.get_parameter(weight), g["ema/before"])
    ema.update(shadow, live.denoiser, ema.decay_at(4321 + 1, 0.9999))
    assert relative_error(shadow.get_parameter(weight), g["ema/after"]) <= BUFFERS


def norm(module: nn.Module) -> Tensor:
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()


def training(g: dict[str, Tensor], model: LatentDiffusion) -> None:
    """The loss at the recorded times and noise, and its gradients."""
    second = model.second
    assert second is not None
    schedule, t = second.schedule, time_of_index(g["in/t"], second.schedule.steps)
    for part in (second.denoiser, second.conditioner):
        if part is not None:
            part.requires_grad_(True)
    given = condition(model, g)
    assert given is not None
    x_t = add_noise(schedule, g["in/x0"], g["in/noise"], t)
    predicted = second.denoiser(x_t, network_time(t, schedule.steps).float(), given)
    kind = model.config.about["loss"]
    simple = loss(ObjectiveConfig(loss=kind), schedule, predicted, g["in/x0"], g["in/noise"], t)
    both = ObjectiveConfig(loss=kind, elbo_weight=1.0)
    bound = loss(both, schedule, predicted, g["in/x0"], g["in/noise"], t) - simple
    total = simple.mean()
    total.backward()
    for key in ("loss/total", "loss/loss_simple", "loss/loss", "loss/train_total"):
        assert relative_error(total.detach(), g[key]) <= TRAINING, key
    assert relative_error(bound.mean().detach(), g["loss/loss_vlb"]) <= GRADIENTS
    assert relative_error(norm(second.denoiser), g["loss/grad_norm_unet"]) <= GRADIENTS
    if "loss/grad_norm_cond" in g:
        assert second.conditioner is not None
        assert relative_error(norm(second.conditioner), g["loss/grad_norm_cond"]) <= GRADIENTS
