"""`sfumato info`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.estimate import short
from sfumato.cli.flags import command, flag
from sfumato.cli.info_others import other_facts
from sfumato.cli.machine import AModel
from sfumato.errors import UserError
from sfumato.foreign import printable
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from torch import nn

    from sfumato.model import LatentDiffusion, SecondStage


MOST_SHOWN = 40
"""Entries of a list in the table; --json has all."""


@dataclass(frozen=True, kw_only=True)
class InfoFlags(AModel):
    """The options of `sfumato info`."""

    as_json: bool = flag(False, "output", "The same as one JSON object.", names=("--json",))
    config: Path | None = flag(
        None, "what to sample", "Of a checkpoint file: its original YAML [default: beside it, else inferred]."
    )


@command(InfoFlags)
def info(flags: InfoFlags) -> None:
    """Describe a model: its parts, its training, its cost.

    A checkpoint file of another program is described too, without running any of it.
    """
    model, config, as_json = flags.model, flags.config, flags.as_json
    if os.path.exists(model) and not Path(model).is_dir():
        from sfumato.interop.describe import describe, listing

        lines = [to_json(listing(model, config), indent=2)] if as_json else describe(model, config)
        typer.echo("\n".join(printable(" ".join(line.splitlines())) if not as_json else line for line in lines))
        return
    if config is not None:
        raise UserError("--config is for a checkpoint file; a model folder has its own configuration")
    if (Path(model) / "model_index.json").is_file():
        from sfumato.interop.describe import describe_folder

        lines = describe_folder(Path(model))
        about = {"path": lines[0], "architecture": [line.strip() for line in lines[1:]]}
        typer.echo(to_json(about, indent=2) if as_json else printable("\n".join(lines)))
        return
    from sfumato.cli.tables import show
    from sfumato.model_folder import find_folder, load

    facts = other_facts(model)
    if facts is None:
        folder = find_folder(model)
        facts = {"path": str(folder), **_storage(folder), **facts_of(load(model))}
    if as_json:
        typer.echo(to_json(facts, indent=2))
    else:
        show(None, [[printable(cell) for cell in row] for row in _rows(facts)])


def facts_of(model: "LatentDiffusion") -> dict[str, Any]:
    """The description of a model, as JSON."""
    from sfumato.autoencoder.model import VQConfig

    config = model.config
    bottleneck = config.autoencoder.bottleneck
    codes = {"codes": bottleneck.codes} if isinstance(bottleneck, VQConfig) else {}
    facts: dict[str, Any] = {
        "digest": model.digest,
        "image size": list(config.image_size),
        **({"trained sizes": [list(size) for size in config.trained_sizes]} if config.trained_sizes else {}),
        "f": model.autoencoder.factor,
        "latent shape": list(model.latent_shape),
        "bottleneck": {"kind": bottleneck.kind, **codes},
        "parameters": _parameters(model),
    }
    if model.second is not None:
        facts["scaling"] = {
            "shift": [round(value, 4) for value in model.scaling.shift.tolist()],
            "scale": [round(value, 4) for value in model.scaling.scale.tolist()],
        }
        denoiser = model.second.config.denoiser
        facts["denoiser"] = {"kind": denoiser.kind, **denoiser.model_dump(mode="json", exclude_defaults=True)}
        facts["conditioner"] = _conditioner(model, model.second)
        facts["condition dropout"] = model.second.config.condition_dropout
        facts["schedule"] = model.second.config.schedule.model_dump(mode="json")
        facts["prediction"] = model.second.config.prediction
        student = model.second.config.student
        if student is not None:
            guidance = [student.low, student.high]
            facts["student of"] = {"teacher": student.teacher, "method": student.method, "guidance": guidance}
    if model.tiny is not None:
        network, about = model.tiny.network, model.tiny.config.about
        facts["tiny decoder"] = {"channels": network.config.channels, "parameters": _count(network), **about}
    facts["trained on"] = config.about
    facts["flops"] = _costs(model)
    return facts


def _storage(folder: Path) -> dict[str, Any]:
    """Bits and bytes of weights that are stored in fewer bits than they are computed in."""
    from sfumato.model_folder import bits_of

    bits = bits_of(folder)
    if bits is None:
        return {}
    return {"stored": {"bits": bits, "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors"))}}


def _parameters(model: "LatentDiffusion") -> dict[str, int]:
    """By part; the scaling's few numbers are no parameters."""
    counts = {name: _count(part) for name, part in model.parts().items()}
    counts = {name: count for name, count in counts.items() if name != "scaling"}
    return {**counts, "total": sum(counts.values())}


def _count(part: "nn.Module") -> int:
    return sum(p.numel() for p in part.parameters())


def _conditioner(model: "LatentDiffusion", second: "SecondStage") -> dict[str, Any]:
    """Kind, fields it reads, and what it gives; the vocabulary or the classes."""
    from sfumato.conditioning.table import class_config
    from sfumato.conditioning.text import TextTransformer

    facts: dict[str, Any] = {"kind": second.config.conditioner.kind}
    conditioner = second.conditioner
    if conditioner is None:
        return facts
    facts |= {"reads": list(conditioner.reads), "tokens": _tokens(model, second)}
    given = {
        "token width": conditioner.spec.token_dim,
        "vector width": conditioner.spec.vector_dim,
        "spatial channels": conditioner.spec.spatial_channels or None,
    }
    facts |= {name: value for name, value in given.items() if value is not None}
    source = getattr(second.config.conditioner, "source", None)
    facts |= {"source": source} if source is not None else {}
    texts = next((part for part in conditioner.modules() if isinstance(part, TextTransformer)), None)
    if texts is not None:
        facts["vocabulary"] = texts.transformer.token_emb.num_embeddings
    classes = class_config(second.config.conditioner)
    if classes is not None:
        facts["classes"] = list(model.config.classes) if model.config.classes else classes.classes
    return facts


def _tokens(model: "LatentDiffusion", second: "SecondStage") -> int:
    """How many condition tokens a sample has; 0 where the denoiser takes none."""
    if second.conditioner is None or second.conditioner.spec.token_dim is None:
        return 0
    known = getattr(second.config.conditioner, "max_tokens", None)
    if known is not None:
        return int(known)
    null = second.conditioner.null(1, model.latent_shape[1:]) if second.config.condition_dropout > 0 else None
    return 1 if null is None or null.tokens is None else null.tokens.shape[1]


def _costs(model: "LatentDiffusion") -> dict[str, int]:
    """Floating-point operations at the training size; an image is its network calls and the decoding."""
    from sfumato import flops
    from sfumato.conditioning.condition import ConditionSpec
    from sfumato.pipeline.students import calls_twice, default_steps

    H, W = model.config.image_size
    size = (H, W)
    costs = {
        "encode": flops.encode(model.config.autoencoder, size),
        "decode": flops.decode(model.config.autoencoder, size),
        **({} if model.tiny is None else {"tiny decode": flops.decode_tiny(model.tiny.config.decoder, size)}),
    }
    second = model.second
    if second is None:
        return costs
    channels, h, w = model.latent_shape
    spec = ConditionSpec() if second.conditioner is None else second.conditioner.spec
    call = flops.denoise(second.config.denoiser, channels, spec, (h, w), _tokens(model, second))
    steps, guided = default_steps(second.config), calls_twice(second)
    name = f"{steps}-step {'guided ' if guided else ''}image"
    return {**costs, "network call": call, name: steps * (2 if guided else 1) * call + costs["decode"]}


def _rows(facts: dict[str, Any]) -> list[list[str]]:
    """A row for each fact; a group is one line, or one line for each group in it."""
    rows = []
    for name, value in facts.items():
        if name == "trained on":
            rows += [[f"{part} trained on", _as_text(about)] for part, about in value.items()]
        elif name == "parameters":
            rows.append([name, ", ".join(f"{part} {short(count)}" for part, count in value.items())])
        elif name == "flops":
            rows += [[f"{part}", f"{short(count)}FLOPs"] for part, count in value.items()]
        elif name in ("image size", "latent shape"):
            rows.append([name, " x ".join(str(side) for side in value)])
        else:
            rows.append([name, _as_text(value)])
    return rows


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        kind = [str(value["kind"])] if "kind" in value else []
        return ", ".join(kind + [f"{key} {_as_text(item)}" for key, item in value.items() if key != "kind"])
    if isinstance(value, list) and len(value) > MOST_SHOWN:
        return f"{_as_text(value[:MOST_SHOWN])} and {len(value) - MOST_SHOWN} more"
    if isinstance(value, list):
        return " ".join(_as_text(item) for item in value) if _are_numbers(value) else ", ".join(map(_as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)
