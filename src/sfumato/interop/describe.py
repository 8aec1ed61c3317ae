"""The contents of a checkpoint file or diffusers folder, without running any of it or reading its weights."""

from collections import Counter
from pathlib import Path
from typing import Any

from sfumato.autoencoder.model import AutoencoderConfig, VQConfig
from sfumato.denoiser.unet import UNetConfig
from sfumato.errors import UserError
from sfumato.foreign import reading, short
from sfumato.interop.diffusers_config import ReadUNet
from sfumato.interop.diffusers_folder import read_folder
from sfumato.interop.infer import CONDITIONER, EMA, FIRST_STAGE, UNET
from sfumato.interop.original import read_architecture
from sfumato.interop.source import Source, open_checkpoint, renamed
from sfumato.interop.transformer import find_transformer, summary

GROUPS = {
    UNET: "denoiser",
    FIRST_STAGE: "first stage",
    CONDITIONER: "conditioner",
    EMA: "averaged weights",
    "loss.": "training loss",
    "encoder.": "first stage",
    "decoder.": "first stage",
}


def describe(path: Path | str, config: Path | str | None = None) -> list[str]:
    """Lines about a .ckpt, .pt, .pth or .safetensors file: kind, groups of keys, other entries, architecture.

    `config` is the original YAML; by default the one next to the file, else the architecture is inferred.

    Raises UserError if the file is not a checkpoint, is damaged or truncated.
    """
    with reading(path):
        return _lines(_opened(path), config)


def describe_folder(path: Path) -> list[str]:
    """Lines about a diffusers folder, from its configurations: its class and the architecture.

    Raises UserError for what cannot be imported.
    """
    with reading(path):
        parts = read_folder(path)
    lines = [f"{path}: a folder of diffusers, {short(parts.name)}; `sfumato import` makes a model folder of it"]
    lines.append(f"  {_first_stage(parts.autoencoder)}")
    if isinstance(parts.network, ReadUNet):
        unet = parts.network
        lines.append(f"  {_unet(unet.config)}, predicts {parts.prediction}")
        lines.append(f"  conditioning: {_conditions(unet)}; schedule: {parts.schedule}")
    elif parts.network is not None:
        read = parts.network
        lines += [
            f"  denoiser: a DiT of {read.config.depth} blocks of {read.config.width} channels, {read.config.heads} "
            f"heads, patches of {read.config.patch}, latents of {read.channels} channels, {read.side} x {read.side}, "
            f"predicts {parts.prediction}{' and a variance' if read.variance else ''}",
            f"  conditioning: {read.classes} classes and an unconditional one; schedule: {parts.schedule}",
        ]
    return lines


def _conditions(read: ReadUNet) -> str:
    found = [] if read.token_dim is None else [f"tokens of width {read.token_dim}"]
    found += [] if read.classes is None else [f"{read.classes} classes"]
    extra = read.in_channels - read.out_channels
    found += [f"{extra} channels beside the latent"] if extra > 0 else []
    return ", ".join(found) or "none"


def _opened(path: Path | str) -> Source:
    """The keys of a transformer are left as they are."""
    source = open_checkpoint(path, rename=False)
    return renamed(source) if find_transformer(source) is None else source


def _lines(source: Source, config: Path | str | None) -> list[str]:
    counts: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    types: Counter[str] = Counter()
    for key, tensor in source.tensors.items():
        group = next((name for prefix, name in GROUPS.items() if key.startswith(prefix)), "other")
        elements = 1
        for size in tensor.shape:
            elements *= size
        counts[group] += 1
        numbers[group] += elements
        types[str(tensor.dtype).removeprefix("torch.")] += 1
    kinds = ", ".join(f"{kind} ({count})" for kind, count in types.most_common())
    lines = [f"{source.path}: {_tensors(len(source.tensors))}, {source.path.stat().st_size / 2**20:.1f} MiB, {kinds}"]
    lines += [f"  {group}: {_tensors(counts[group])}, {numbers[group] / 1e6:.1f} M numbers" for group in counts]
    lines += [
        f"  {name}: {short(value) if not isinstance(value, str) else value[:200]}"
        for name, value in source.extras.items()
    ]
    if source.stubs:
        lines.append(f"  classes named in the file, not loaded: {', '.join(source.stubs)}")
    if source.others:
        lines.append(f"  entries that are not tensors: {', '.join(source.others)}")
    return lines + _architecture(source, config)


def listing(path: Path | str, config: Path | str | None = None) -> dict[str, Any]:
    """The same for programs: every key with its shape and element type, other entries, and the architecture."""
    with reading(path):
        return _listing(_opened(path), config)


def _listing(source: Source, config: Path | str | None) -> dict[str, Any]:
    return {
        "path": str(source.path),
        "bytes": source.path.stat().st_size,
        "tensors": {
            key: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for key, tensor in source.tensors.items()
        },
        "extras": source.extras,
        "classes not loaded": list(source.stubs),
        "entries that are no tensors": list(source.others),
        "architecture": [line.strip() for line in _architecture(source, config)],
    }


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' * (count != 1)}"


def _architecture(source: Source, config: Path | str | None) -> list[str]:
    transformer = find_transformer(source)
    if transformer is not None:
        return [f"  {line}" for line in (*summary(transformer, source.path), *transformer.notes)]
    notes: list[str] = []
    try:
        original = read_architecture(source, config, None, notes.append)
    except UserError as error:
        if config is not None:
            raise
        return [f"  architecture: {error}"]
    lines = [f"  {_first_stage(original.autoencoder)}"]
    if original.diffusion is not None:
        d = original.diffusion
        lines.append(f"  {_unet(d.unet)}, predicts {d.prediction}")
        lines.append(f"  conditioning: {d.conditioning.mode}, {d.conditioning.kind}; schedule: {d.schedule}")
    return lines + [f"  {note}" for note in notes]


def _first_stage(config: AutoencoderConfig) -> str:
    kind = f"VQ of {config.bottleneck.codes} codes" if isinstance(config.bottleneck, VQConfig) else "KL"
    return f"first stage: f = {config.factor}, {config.raw_channels} channels, {kind}"


def _unet(config: UNetConfig) -> str:
    heads = f"{config.heads} heads" if config.heads else f"heads of {config.head_channels} channels"
    return (
        f"denoiser: {config.channels} channels x {list(config.channel_multipliers)}, attention at factors "
        f"{list(config.attention_factors)}, {heads}"
    )
