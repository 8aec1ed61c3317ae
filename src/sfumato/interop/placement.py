"""The destination of every key of an original checkpoint: a part of the model, or storage for export.

Nothing is dropped. A model holds one set of weights for the denoiser; an original file may hold two (live and
averaged), besides its schedule, training losses and unused heads. Keys that the model does not use are *kept*.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sfumato.counts import how_many
from sfumato.errors import UserError
from sfumato.interop.infer import BUFFERS, CONDITIONER, EMA, FIRST_STAGE, UNET

Shapes = Mapping[str, tuple[int, ...]]
Weights = Literal["ema", "live"]
EMA_COUNTERS = (f"{EMA}decay", f"{EMA}num_updates")
NETWORKS = (UNET, f"{FIRST_STAGE}encoder.", f"{FIRST_STAGE}decoder.", "encoder.", "decoder.")

REASONS = {
    "live": "live weights, besides the averaged ones that the model uses",
    "averaged": "averaged weights, besides the live ones that the model uses",
    "schedule": "buffers of the noise schedule",
    "loss": "parts of the training loss (discriminator, perceptual distance, variances)",
    "head": "an output head of the text encoder that is never used",
    "counter": "counters of the training",
    "copy": "second copies of the first stage",
    "unknown": "keys of no known use",
}


@dataclass(frozen=True)
class Placement:
    """parts: part -> our key -> original key. kept: original key -> reason (a key of REASONS)."""

    parts: dict[str, dict[str, str]]
    kept: dict[str, str]

    def summary(self) -> list[str]:
        """One line for each reason for which keys are kept."""
        lines = []
        for reason, text in REASONS.items():
            keys = [key for key, why in self.kept.items() if why == reason]
            if keys:
                example = f", such as {keys[0]!r}" if reason == "unknown" else ""
                lines.append(f"{len(keys)} {'key' if len(keys) == 1 else 'keys'}: {text}{example}")
        return lines


def ema_key(key: str) -> str:
    """The name under which the original's average of a parameter is stored: its dots are removed."""
    return EMA + key.replace(".", "")


def _expected_keys(parts: Mapping[str, Shapes], prefixes: Mapping[str, str], second: bool) -> dict[str, dict[str, str]]:
    """part -> our key -> original key of the live weights."""
    first = FIRST_STAGE if second else ""
    expected = {"autoencoder": {key: first + key for key in parts["autoencoder"]}}
    if second:
        expected["denoiser"] = {key: UNET + key for key in parts["denoiser"]}
    if prefixes:
        expected["conditioner"] = {}
        for key in parts.get("conditioner", {}):
            ours = next(prefix for prefix in prefixes if key.startswith(prefix))
            expected["conditioner"][key] = prefixes[ours] + key[len(ours) :]
    return expected


def place(
    shapes: Shapes,
    parts: Mapping[str, Shapes],
    prefixes: Mapping[str, str],
    weights: Weights | None,
    where: str,
) -> Placement:
    """Matches a checkpoint's keys with the parts of the model built for it.

    Args:
        shapes: every key of the checkpoint.
        parts: part -> its state dict's shapes ("autoencoder", and for a diffusion model "denoiser", "conditioner").
        prefixes: prefix of the conditioner's keys -> prefix in the checkpoint.
        weights: "ema" or "live"; None selects the averaged weights if there are any.
        where: name of the file in errors.

    Raises UserError for a missing key, one of the wrong shape (with both shapes), and one of a network that the
    configuration does not have, without which the others would compute something else.
    """
    second = "denoiser" in parts
    live = _expected_keys(parts, prefixes, second)
    if second and "first_stage_model.encoder.conv_in.weight" not in shapes:
        live["autoencoder"] = {key: key for key in parts["autoencoder"]}
    averaged_part = "denoiser" if second else "autoencoder"
    twins = {original: ema_key(original.removeprefix("model.")) for original in live[averaged_part].values()}
    twins |= {o: ema_key(o.removeprefix("model.")) for o in live.get("conditioner", {}).values() if o.startswith(UNET)}
    has_ema = any(twin in shapes for twin in twins.values())
    if weights == "ema" and not has_ema:
        raise UserError(f"{where} has no averaged weights ({EMA}...): leave out --weights or give --weights live")
    use_ema = has_ema and weights != "live"
    used: dict[str, dict[str, str]] = {}
    for part, keys in live.items():
        used[part] = {}
        for ours, original in keys.items():
            twin = twins.get(original)
            source = twin if use_ema and twin is not None and (twin in shapes or _must_be_averaged(ours)) else original
            used[part][ours] = source
            _check(shapes, source, parts[part][ours], where)
    placed = {source for keys in used.values() for source in keys.values()}
    everywhere = {original for keys in live.values() for original in keys.values()} | set(twins.values())
    kept = {key: _reason(key, everywhere) for key in shapes if key not in placed}
    strays = [key for key, why in kept.items() if why == "unknown" and key.startswith(NETWORKS)]
    if strays:
        raise UserError(
            f"{where} has {how_many(len(strays), 'key')} of networks that its configuration does not have, the first "
            f"is {strays[0]!r} of shape {tuple(shapes[strays[0]])}: is it another model's configuration?"
        )
    return Placement(used, kept)


def _must_be_averaged(key: str) -> bool:
    """All the denoiser's tensors are parameters, and every parameter is averaged."""
    return not key.endswith(("num_batches_tracked", "running_mean", "running_var"))


def _check(shapes: Shapes, key: str, expected: Sequence[int], where: str) -> None:
    if key not in shapes:
        raise UserError(f"{where} lacks the key {key!r} that its configuration requires, of shape {tuple(expected)}")
    if tuple(shapes[key]) != tuple(expected):
        raise UserError(
            f"{where}: the key {key!r} has shape {tuple(shapes[key])}, its configuration requires {tuple(expected)}"
        )


def _reason(key: str, everywhere: set[str]) -> str:
    if key in EMA_COUNTERS or key in ("logvar",):
        return "counter"
    if key in BUFFERS or key in ("scale_factor", "lvlb_weights"):
        return "schedule"
    if key in everywhere:
        return "averaged" if key.startswith(EMA) else "live"
    if key.startswith(("loss.", f"{FIRST_STAGE}loss.", f"{EMA}loss")):
        return "loss"
    if ".to_logits." in key or key.endswith((".position_ids", "logit_scale", "text_projection")):
        return "head"
    if key.startswith(CONDITIONER) and key[len(CONDITIONER) :].startswith(("encoder.", "decoder.", "quan", "post_q")):
        return "copy"
    return "unknown"
