"""From noise to a latent under guidance by text, as the pipelines of diffusers and `sfumato sample` do it."""

import copy

import torch
from torch import Tensor, nn

from benchmarks.networks import TOKEN_DIM, unet_pair
from benchmarks.workloads import BEST, DEFAULT, Network, Scope, Workload, channels_last
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNetConfig
from sfumato.diffusion.schedule import ScaledLinearConfig, build_schedule
from sfumato.engine.inference import for_inference
from sfumato.pipeline import denoise as denoising
from sfumato.pipeline.denoise import Guidance, guided
from sfumato.sampling.ancestral import DDIMConfig
from sfumato.sampling.auto import Choice, choose
from sfumato.sampling.grids import GridConfig, build_grid
from sfumato.sampling.loop import sample
from sfumato.sampling.table import build_sampler

SCALE = 7.5
THEIR_STEPS, OUR_STEPS, INTERVAL = 50, 10, (0.4, 0.8)
"""What docs/results/samplers.md finds to give images alike."""
DDIM = Choice(DDIMConfig(), GridConfig(kind="trailing"), "")


def same_steps(config: UNetConfig, steps: int, scope: Scope) -> Workload:
    """Guided DDIM with the text U-Net, one latent of 32 x 32: the same steps on both sides, the same latent."""
    x, tokens = torch.randn(1, 4, 32, 32), torch.randn(1, 77, TOKEN_DIM)
    ours, theirs = unet_pair(config, TOKEN_DIM, 32)
    types = {"float32": torch.float32, **({"bf16": torch.bfloat16} if scope.half else {})}
    candidates = {DEFAULT: lambda: their_loop(theirs, x, tokens, steps, SCALE)}
    if scope.half:
        half = channels_last(theirs, torch.bfloat16)
        candidates[f"{BEST} bf16"] = lambda: their_loop(half, x.bfloat16(), tokens.bfloat16(), steps, SCALE)
    for name, dtype in types.items():
        fast = for_inference(copy.deepcopy(ours), dtype)
        candidates[f"sfumato {name}"] = lambda fast=fast: our_loop(fast, x, tokens, steps, DDIM, Guidance(SCALE))  # type: ignore[misc]
    return Workload(candidates, 1, "latents")


def alike_images(config: UNetConfig, scope: Scope) -> Workload:
    """diffusers' usual fifty guided steps of DDIM against few of ours, guided in an interval: latents differ."""
    x, tokens = torch.randn(1, 4, 32, 32), torch.randn(1, 77, TOKEN_DIM)
    ours, theirs = unet_pair(config, TOKEN_DIM, 32)
    fast = for_inference(ours, torch.bfloat16 if scope.half else torch.float32)
    few = choose(build_schedule(ScaledLinearConfig()), "eps", OUR_STEPS, SCALE)
    guidance = Guidance(SCALE, INTERVAL)
    candidates = {
        DEFAULT: lambda: their_loop(theirs, x, tokens, THEIR_STEPS, SCALE),
        f"sfumato, {OUR_STEPS} steps": lambda: our_loop(fast, x, tokens, OUR_STEPS, few, guidance),
    }
    return Workload(candidates, 1, "latents")


@torch.no_grad()
def their_loop(unet: Network, x: Tensor, tokens: Tensor, steps: int, scale: float) -> Tensor:
    """The loop of diffusers' text-to-image pipelines; noise x and tokens in the network's type."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        beta_start=ScaledLinearConfig().start,
        beta_end=ScaledLinearConfig().end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps, device=x.device)
    both = torch.cat([torch.zeros_like(tokens), tokens])
    for t in scheduler.timesteps:
        doubled = scheduler.scale_model_input(torch.cat([x] * 2), t)
        without, given = unet(doubled, t, encoder_hidden_states=both, return_dict=False)[0].chunk(2)
        x = scheduler.step(without + scale * (given - without), t, x, return_dict=False)[0]
    return x


@torch.no_grad()
def our_loop(unet: nn.Module, x: Tensor, tokens: Tensor, steps: int, choice: Choice, guidance: Guidance) -> Tensor:
    """The spine's."""
    schedule = build_schedule(ScaledLinearConfig())
    null = Condition(tokens=torch.zeros_like(tokens))
    denoise = guided(denoising.Network(unet, schedule, "eps"), Condition(tokens=tokens), null, guidance)
    grid = build_grid(choice.grid, schedule, steps)
    return sample(build_sampler(choice.sampler), schedule, denoise, x, grid, torch.randn)
