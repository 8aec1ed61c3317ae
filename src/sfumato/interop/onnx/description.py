"""The JSON beside the graphs: everything that a program needs to sample with them besides the graphs themselves."""

from collections.abc import Sequence
from typing import Any

from sfumato import __version__
from sfumato.diffusion.schedule import DiscreteSchedule
from sfumato.interop.onnx.conditions import ConditionPort, condition_ports
from sfumato.interop.onnx.graphs import Graph
from sfumato.model import LatentDiffusion
from sfumato.pipeline.parts import SecondStage
from sfumato.pipeline.request import DEFAULT_GUIDANCE

FILE = "model.json"
VERSION = 1
Json = dict[str, Any]


def describe(model: LatentDiffusion, graphs: Sequence[Graph]) -> Json:
    """The description, documented in docs/onnx.md; plain data."""
    config = model.config
    f = config.autoencoder.factor
    multiple = f if model.second is None else f * model.second.config.denoiser.factor
    return {
        "format": VERSION,
        "sfumato": __version__,
        "model": model.digest,
        "image": {
            "channels": config.autoencoder.image_channels,
            "height": config.image_size[0],
            "width": config.image_size[1],
            "multiple_of": multiple,
            "range": [-1, 1],
        },
        "latent": {
            "kind": config.autoencoder.bottleneck.kind,
            "channels": model.autoencoder.latent_channels,
            "factor": f,
            "shift": model.scaling.shift.tolist(),
            "scale": model.scaling.scale.tolist(),
        },
        "diffusion": None if model.second is None else _diffusion(model.second),
        "conditions": [] if model.second is None else _conditions(model.second),
        "classes": None if config.classes is None else list(config.classes),
        "graphs": {
            graph.name: {"inputs": _shapes(graph.inputs), "outputs": _shapes(graph.outputs)} for graph in graphs
        },
    }


def _diffusion(second: SecondStage) -> Json:
    config, schedule = second.config, second.schedule
    unconditional = second.conditioner is not None and config.condition_dropout > 0
    student = None if config.student is None else {"low": config.student.low, "high": config.student.high}
    return {
        "prediction": config.prediction,
        "schedule": config.schedule.kind,
        "steps": schedule.steps,
        "alphas_cumprod": schedule.alphas_cumprod.tolist() if isinstance(schedule, DiscreteSchedule) else None,
        "guidance": DEFAULT_GUIDANCE if unconditional and student is None else None,
        "student": student,
    }


def _conditions(second: SecondStage) -> list[Json]:
    if second.conditioner is None:
        return []
    return [_condition(port) for port in condition_ports(second.config, second.conditioner)]


def _condition(port: ConditionPort) -> Json:
    dtype = "float32" if port.below is None else "int64"
    return {
        "name": port.name,
        "kind": port.kind,
        "type": dtype,
        "shape": list(port.shape),
        "null": port.null,
        "pad": port.pad,
    }


def _shapes(ports: dict[str, Any]) -> Json:
    return {name: list(shape) for name, shape in ports.items()}
