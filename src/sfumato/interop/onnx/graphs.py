"""The networks of a model as functions of plain tensors, for tracing.

Encoder and decoder convert raw latents, the others model latents; the scaling between both is in the description.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.autoencoder.bottleneck import VectorQuantizer
from sfumato.autoencoder.model import Autoencoder
from sfumato.conditioning.condition import Condition, Conditioner
from sfumato.conditioning.spatial import SpatialRescaler
from sfumato.interop.onnx.conditions import BATCH, Axis, ConditionPort, condition_ports
from sfumato.model import LatentDiffusion
from sfumato.pipeline.parts import SecondStage

Example = Callable[[int, tuple[int, int], torch.Generator], tuple[Tensor, ...]]
"""(batch, (h, w) in smallest latents, random) -> inputs."""

IMAGE: tuple[Axis, ...] = ("height", "width")
LATENT: tuple[Axis, ...] = ("latent_height", "latent_width")
NEAR = 0.01
"""Latents for comparing a codebook's decoder are this far from a code: where two codes are equally near, rounding
chooses."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A network to be traced.

    Attributes:
        name: of its file, without the ending.
        module: called with the inputs in order, returns a tensor for each output.
        inputs, outputs: shapes by name; named axes vary.
        example: makes random inputs.
    """

    name: str
    module: nn.Module
    inputs: dict[str, tuple[Axis, ...]]
    outputs: dict[str, tuple[Axis, ...]]
    example: Example


def graphs_of(model: LatentDiffusion) -> list[Graph]:
    """The graphs of a model in float32. Raises UserError for what cannot be exported."""
    found = [] if model.config.autoencoder.bottleneck.kind == "pixels" else _first_stage(model)
    return found if model.second is None else [*found, *_second_stage(model, model.second)]


# -- first stage ------------------------------------------------------------------------------------------------------


class _Encode(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.autoencoder.latent_from_moments(self.autoencoder.encode(image).moments),)


class _Decode(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        quantize = self.autoencoder.quantize
        if quantize is not None:
            latent = quantize.embed(quantize.search(latent, sliced=False))
        return (self.autoencoder.decode(latent, quantize=False),)


class _Preview(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, latent: Tensor) -> tuple[Tensor]:
        return (self.network(latent),)


def _first_stage(model: LatentDiffusion) -> list[Graph]:
    autoencoder, channels = model.autoencoder, model.config.autoencoder.image_channels
    f, C = autoencoder.factor, autoencoder.latent_channels
    image, latent = {"image": (BATCH, channels, *IMAGE)}, {"latent": (BATCH, C, *LATENT)}

    def images(batch: int, size: tuple[int, int], random: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.rand(batch, channels, size[0] * f, size[1] * f, generator=random) * 2 - 1,)

    def latents(batch: int, size: tuple[int, int], random: torch.Generator) -> tuple[Tensor, ...]:
        noise = torch.randn(batch, C, *size, generator=random)
        return (noise if autoencoder.quantize is None else _near_codes(autoencoder.quantize, noise, random),)

    found = [
        Graph("encoder", _Encode(autoencoder), image, latent, images),
        Graph("decoder", _Decode(autoencoder), latent, image, latents),
    ]
    if model.tiny is not None:
        found.append(Graph("tiny_decoder", _Preview(model.tiny.network), latent, image, latents))
    return found


def _near_codes(quantize: VectorQuantizer, noise: Tensor, random: torch.Generator) -> Tensor:
    B, _, h, w = noise.shape
    codes = quantize.codebook()
    chosen = quantize.embed(torch.randint(len(codes), (B, h, w), generator=random))
    return chosen + NEAR * codes.std().nan_to_num() * noise


# -- second stage -----------------------------------------------------------------------------------------------------


class _Condition(nn.Module):
    def __init__(self, conditioner: Conditioner, ports: tuple[ConditionPort, ...]) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.fields = tuple(port.field for port in ports)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.condition(inputs).tensors().values())

    def condition(self, inputs: tuple[Tensor, ...]) -> Condition:
        made: Condition = self.conditioner(dict(zip(self.fields, inputs, strict=True)))
        return made


class _Predict(nn.Module):
    def __init__(self, denoiser: nn.Module, fields: tuple[str, ...]) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.fields = fields

    def forward(self, x_t: Tensor, timestep: Tensor, *condition: Tensor) -> tuple[Tensor]:
        given = dict(zip(self.fields, condition, strict=True))
        return (self.denoiser(x_t, timestep, Condition(**given)),)


def _second_stage(model: LatentDiffusion, second: SecondStage) -> list[Graph]:
    factor, C = second.config.denoiser.factor, model.autoencoder.latent_channels
    latent: tuple[Axis, ...] = (BATCH, C, *LATENT)
    student = second.config.student is not None
    timestep: tuple[Axis, ...] = (BATCH, 3) if student else (BATCH,)
    conditioning: Graph | None = None
    made: dict[str, tuple[Axis, ...]] = {}
    if second.conditioner is not None:
        conditioning, made = _conditioning(second, second.conditioner)
    fields = tuple(made)

    def noisy(batch: int, size: tuple[int, int], random: torch.Generator) -> tuple[Tensor, ...]:
        x_t = torch.randn(batch, C, size[0] * factor, size[1] * factor, generator=random)
        times = torch.rand(batch, 3, generator=random) * torch.tensor([999.0, 500.0, 8.0])
        given = () if conditioning is None else conditioning.module(*conditioning.example(batch, size, random))
        return (x_t, times if student else times[:, 0], *given)

    inputs = {"x_t": latent, "timestep": timestep, **{named(field): shape for field, shape in made.items()}}
    denoiser = Graph("denoiser", _Predict(second.denoiser, fields), inputs, {"prediction": latent}, noisy)
    return [denoiser] if conditioning is None else [conditioning, denoiser]


def _conditioning(second: SecondStage, conditioner: Conditioner) -> tuple[Graph, dict[str, tuple[Axis, ...]]]:
    """The graph of the conditioner, and the shapes of the fields of the condition that it returns."""
    ports = condition_ports(second.config, conditioner)
    module = _Condition(conditioner, ports)
    factor = second.config.denoiser.factor
    stages = max([part.config.stages for part in conditioner.modules() if isinstance(part, SpatialRescaler)], default=0)

    def inputs(batch: int, size: tuple[int, int], random: torch.Generator) -> tuple[Tensor, ...]:
        h, w = size[0] * factor, size[1] * factor
        sizes = {BATCH: batch, "latent_height": h, "latent_width": w}
        sizes |= {"map_height": h << stages, "map_width": w << stages}
        lengths = {axis: 5 for port in ports for axis in port.shape if isinstance(axis, str) and axis not in sizes}
        return tuple(port.example({**sizes, **lengths}, random) for port in ports)

    with torch.no_grad():
        condition = module.condition(inputs(1, (1, 1), torch.Generator().manual_seed(0)))
    spec = conditioner.spec
    shapes: dict[str, tuple[Axis, ...]] = {
        "vector": (BATCH, spec.vector_dim or 0),
        "tokens": (BATCH, "tokens", spec.token_dim or 0),
        "mask": (BATCH, "tokens"),
        "spatial": (BATCH, spec.spatial_channels, *LATENT),
    }
    made = {field: shapes[field] for field in condition.tensors()}
    graph = Graph(
        "conditioner",
        module,
        {port.name: port.shape for port in ports},
        {named(field): shape for field, shape in made.items()},
        inputs,
    )
    return graph, made


def named(field: str) -> str:
    """The name in the graphs of a field of the condition, which no input of a conditioner has."""
    return f"condition_{field}"
