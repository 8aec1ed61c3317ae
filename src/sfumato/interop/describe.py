"""What is in a checkpoint file, told without running any of it and without reading its weights."""

from collections import Counter
from pathlib import Path

from sfumato.autoencoder.model import VQConfig
from sfumato.errors import UserError
from sfumato.interop.infer import CONDITIONER, EMA, FIRST_STAGE, UNET
from sfumato.interop.original import read_architecture
from sfumato.interop.source import Source, open_checkpoint

GROUPS = {
    UNET: "denoiser",
    FIRST_STAGE: "first stage",
    CONDITIONER: "conditioner",
    EMA: "averaged weights",
    "loss.": "training loss",
    "encoder.": "first stage",
    "decoder.": "first stage",
}


def describe(path: Path | str) -> list[str]:
    """Lines about a .ckpt, .pt, .pth or .safetensors file: kind, groups of keys, what lies around them, architecture.

    Raises UserError if the file is no checkpoint, is damaged or cut off.
    """
    source = open_checkpoint(path)
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
    lines = [f"{source.path}: {len(source.tensors)} tensors, {source.path.stat().st_size / 2**20:.1f} MiB, {kinds}"]
    lines += [f"  {group}: {counts[group]} tensors, {numbers[group] / 1e6:.1f} M numbers" for group in counts]
    lines += [f"  {name}: {value}" for name, value in source.extras.items()]
    if source.stubs:
        lines.append(f"  classes named in the file, not loaded: {', '.join(source.stubs)}")
    if source.others:
        lines.append(f"  entries that are no tensors: {', '.join(source.others)}")
    return lines + _architecture(source)


def _architecture(source: Source) -> list[str]:
    notes: list[str] = []
    try:
        original = read_architecture(source, None, None, notes.append)
    except UserError as error:
        return [f"  architecture: {error}"]
    first = original.autoencoder
    kind = f"VQ of {first.bottleneck.codes} codes" if isinstance(first.bottleneck, VQConfig) else "KL"
    lines = [f"  first stage: f = {first.factor}, {first.raw_channels} channels, {kind}"]
    if original.diffusion is not None:
        d = original.diffusion
        heads = f"{d.unet.heads} heads" if d.unet.heads else f"heads of {d.unet.head_channels} channels"
        lines.append(
            f"  denoiser: {d.unet.channels} channels x {list(d.unet.channel_multipliers)}, attention at factors "
            f"{list(d.unet.attention_factors)}, {heads}, predicts {d.prediction}"
        )
        lines.append(f"  conditioning: {d.conditioning.mode}, {d.conditioning.kind}; schedule: {d.schedule}")
    return lines + [f"  {note}" for note in notes]
