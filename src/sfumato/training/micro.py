"""A micro-batch of stage 2, and how its gradients are computed: directly, or by a recorded CUDA graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.conditioning.condition import Fields
from sfumato.diffusion.process import add_noise, network_time
from sfumato.diffusion.schedule import Schedule
from sfumato.diffusion.times import RandomTimes
from sfumato.engine.recorded_step import Named, RecordedGradients
from sfumato.training.step_noise import Keep, StepNoise

FIELD, KEEP = "field ", "keep "


@dataclass(frozen=True)
class MicroBatch:
    """x_t, x0, noise (B, C, h, w), network time (B,), sampled times, which samples keep their condition, the prepared
    fields."""

    x_t: Tensor
    timestep: Tensor
    x0: Tensor
    noise: Tensor
    times: RandomTimes
    keep: Keep
    fields: Fields

    def tensors(self) -> dict[str, Tensor] | None:
        """All tensors by name; None if a field is not a tensor."""
        if not all(isinstance(value, Tensor) for value in self.fields.values()):
            return None
        named = {"x_t": self.x_t, "timestep": self.timestep, "x0": self.x0, "noise": self.noise, "t": self.times.t}
        if self.times.part is not None and self.times.importance is not None:
            named |= {"part": self.times.part, "importance": self.times.importance}
        if isinstance(self.keep, Tensor):
            named["keep"] = self.keep
        elif self.keep is not None:
            named |= {KEEP + name: kept for name, kept in self.keep.items()}
        return named | {FIELD + name: value for name, value in self.fields.items()}


def micro_batch(schedule: Schedule, x0: Tensor, noise: StepNoise, fields: Fields) -> MicroBatch:
    """The micro-batch of clean latents x0 (B, C, h, w), its random numbers, and its prepared fields."""
    x_t = add_noise(schedule, x0, noise.noise, noise.t).contiguous(memory_format=torch.channels_last)
    timestep = network_time(noise.t, schedule.steps).float()
    return MicroBatch(x_t, timestep, x0, noise.noise, noise.times, noise.keep, fields)


def micro_batch_of(named: Named) -> MicroBatch:
    """The micro-batch with these tensors, see `MicroBatch.tensors`."""
    parts = {name.removeprefix(KEEP): tensor for name, tensor in named.items() if name.startswith(KEEP)}
    return MicroBatch(
        x_t=named["x_t"],
        timestep=named["timestep"],
        x0=named["x0"],
        noise=named["noise"],
        times=RandomTimes(named["t"], named.get("part"), named.get("importance")),
        keep=parts or named.get("keep"),
        fields={name.removeprefix(FIELD): tensor for name, tensor in named.items() if name.startswith(FIELD)},
    )


def recorded(
    forward_backward: Callable[[MicroBatch], Tensor], parameters: Sequence[Tensor]
) -> Callable[[MicroBatch], Tensor]:
    """The function that adds a micro-batch's gradients to the parameters, recorded if all its inputs are tensors."""
    recordings = RecordedGradients(lambda named: forward_backward(micro_batch_of(named)), parameters)

    def run(micro: MicroBatch) -> Tensor:
        tensors = micro.tensors()
        return forward_backward(micro) if tensors is None else recordings(tensors)

    return run
