"""What a denoiser costs: operations counted, and seconds of a training step and of a network call measured here.

All networks are measured in turn in every round, in CPU seconds, so that a busy machine slows all of them alike.
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import interleave
from sfumato import flops
from sfumato.checkpoint import write_text
from sfumato.conditioning.condition import ConditionSpec
from sfumato.engine.inference import for_inference
from sfumato.engine.training import for_training
from sfumato.estimate import memory, work
from sfumato.estimate.from_config import diffusion_config
from sfumato.estimate.synthetic import WORDS, SyntheticImages, SyntheticLatents
from sfumato.model import LatentDiffusion
from sfumato.training.averages import ema
from sfumato.training.data import height_width
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.optim import build_optimiser
from sfumato.training.second_stage import build_model, conditional_denoiser

IMAGES = 32
"""Latents of the larger of the two calls that are timed."""


@dataclass(frozen=True)
class Cost:
    """Of one denoiser in one recipe; milliseconds are CPU time, medians over the rounds."""

    parameters: int
    """Of the denoiser."""
    call_operations: int
    """Of the denoiser for one latent."""
    step_operations: int
    """Of a training step, the whole batch and the conditioner included."""
    step_ms: float
    call_ms: float
    """A call for one latent, weights packed."""
    batch_ms: float
    """A call for `IMAGES` latents, each."""


def costs(runs: Mapping[str, DiffusionRun], first: LatentDiffusion, rounds: int) -> dict[str, Cost]:
    """The cost of each run's denoiser in float32."""
    step = _step_seconds(runs, first, rounds)
    one, many = (_call_seconds(runs, first, batch, rounds) for batch in (1, IMAGES))
    found = {}
    for name, run in runs.items():
        latent, spec = first.latent_shape_of(height_width(run.data)), _spec(run)
        second = diffusion_config(run)
        with torch.device("meta"):
            network = memory.build_denoiser(run.denoiser, latent[0], spec)
        found[name] = Cost(
            parameters=memory.parameters([network]),
            call_operations=call_operations(run, first),
            step_operations=run.train.batch * run.train.accumulate * work.second_stage(second, latent, spec).total,
            step_ms=1e3 * step[name],
            call_ms=1e3 * one[name],
            batch_ms=1e3 * many[name] / IMAGES,
        )
    return found


def call_operations(run: DiffusionRun, first: LatentDiffusion) -> int:
    """Operations of the denoiser for one latent."""
    C, h, w = first.latent_shape_of(height_width(run.data))
    return flops.denoise(run.denoiser, C, _spec(run), (h, w), flops.condition_tokens(run.conditioner))


def _step_seconds(runs: Mapping[str, DiffusionRun], first: LatentDiffusion, rounds: int) -> dict[str, float]:
    """CPU seconds of a training step with conditioner, optimiser and average, without reading data."""
    candidates = {name: _training_step(run, first) for name, run in runs.items()}
    return {name: timing.cpu_seconds for name, timing in interleave(candidates, rounds).items()}


def _training_step(run: DiffusionRun, first: LatentDiffusion) -> Callable[[], Tensor]:
    (C, h, w), batch = first.latent_shape_of(height_width(run.data)), run.train.batch
    latents = SyntheticLatents(SyntheticImages(height_width(run.data)), (2 * C, h, w), C)
    networks = for_training(conditional_denoiser(build_model(run, first, latents))).train()
    shadow = ema.average_of(networks)
    optimiser = build_optimiser(run.train.optimiser.model_copy(update={"precision": "float32"}), networks)
    given = {"text": [WORDS[i % len(WORDS)] for i in range(batch)], "label": torch.zeros(batch, dtype=torch.long)}
    fields = {} if networks.conditioner is None else networks.conditioner.prepare(given)
    x_t, target = torch.randn(2, batch, C, h, w).unbind()
    times = torch.linspace(0, 999, batch)

    def step() -> Tensor:
        loss = (networks(x_t, times, fields) - target).square().mean()
        loss.backward()
        optimiser.step()
        ema.update(shadow, networks, run.train.ema_decay)
        optimiser.zero_grad(set_to_none=True)
        return loss

    return step


def _call_seconds(
    runs: Mapping[str, DiffusionRun], first: LatentDiffusion, batch: int, rounds: int
) -> dict[str, float]:
    """CPU seconds of a network call for `batch` latents, with the weights packed."""
    candidates = {name: _call(run, first, batch) for name, run in runs.items()}
    return {name: timing.cpu_seconds for name, timing in interleave(candidates, max(11, rounds)).items()}


def _call(run: DiffusionRun, first: LatentDiffusion, batch: int) -> Callable[[], Tensor]:
    C, h, w = first.latent_shape_of(height_width(run.data))
    spec = _spec(run)
    network = for_inference(copy.deepcopy(memory.build_denoiser(run.denoiser, C, spec)), torch.float32)
    condition = memory.blank_condition(run.conditioner, spec, batch, (h, w))
    x_t, t = torch.randn(batch, C, h, w), torch.full((batch,), 500.0)

    def call() -> Tensor:
        with torch.no_grad():
            prediction: Tensor = network(x_t, t, condition)
        return prediction

    return call


def _spec(run: DiffusionRun) -> ConditionSpec:
    conditioner = memory.build_meta_conditioner(run.conditioner)
    return ConditionSpec() if conditioner is None else conditioner.spec


def kept_costs(
    file: Path | None, runs: Mapping[str, DiffusionRun], first: LatentDiffusion, rounds: int
) -> dict[str, Cost]:
    """The costs in the file; all are measured again, and the file written, unless it has all of them."""
    stored = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.exists() else {}
    if not all(name in stored for name in runs):
        stored = {name: asdict(cost) for name, cost in costs(runs, first, rounds).items()}
        if file is not None:
            write_text(file, json.dumps(stored, indent=1) + "\n")
    return {name: Cost(**stored[name]) for name in runs}


def table(found: Mapping[str, Cost], reference: str) -> str:
    """Markdown: a row for each denoiser, times in milliseconds and relative to the reference."""
    base = found[reference]
    lines = [
        "| denoiser | parameters | MFLOP a call | ms a training step | ms a call | ms a latent of 32 | GFLOP/s, step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in found.items():
        timed: Sequence[tuple[float, float, str]] = (
            (cost.step_ms, base.step_ms, ".0f"),
            (cost.call_ms, base.call_ms, ".2f"),
            (cost.batch_ms, base.batch_ms, ".2f"),
        )
        cells = [f"{value:{form}} ({value / other:.2f} ×)" for value, other, form in timed]
        size = f"{cost.parameters / 1e6:.2f} M | {cost.call_operations / 1e6:.1f}"
        lines.append(f"| {name} | {size} | {' | '.join(cells)} | {cost.step_operations / cost.step_ms / 1e6:.0f} |")
    return "\n".join([*lines, ""])
