"""`sfumato bench`."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.estimate import duration, first_stage_of, parsed, short
from sfumato.cli.flags import command, flag
from sfumato.cli.machine import Device
from sfumato.counts import how_many
from sfumato.pipeline.options import Range
from sfumato.plain_json import to_json

if TYPE_CHECKING:
    from sfumato.estimate.machine import MachineSpeed
    from sfumato.estimate.sampling import SamplingForecast
    from sfumato.model import LatentDiffusion

CALM = 0.9
"""The share of a core below which the times include other programs."""
STANDARD = "zoo:toy/text"
"""Small and shipped, so that two machines can be compared without a trained model."""


@dataclass(frozen=True, kw_only=True)
class BenchFlags(Device):
    """The options of `sfumato bench`."""

    model: str = flag(
        STANDARD,
        "what to sample",
        "A model folder, a run, or a stage 2 configuration.",
        metavar="[MODEL]",
        argument=True,
        path=True,
    )
    count: int = flag(
        4, "what to sample", "Images sampled at once.", Range(1, 65_536, whole=True), names=("-n", "--count")
    )
    autoencoder: str | None = flag(
        None, "what to sample", "For a configuration: its first stage, as for `sfumato estimate`.", path=True
    )
    as_json: bool = flag(False, "output", "Print JSON.", names=("--json",))


@command(BenchFlags)
def bench(flags: BenchFlags) -> None:
    """Measure this machine, and the cost of an image.

    Measures arithmetic, memory and native kernels, then sampling with MODEL at the default settings. A configuration is
    timed without training: the speed of a network does not depend on its weights.
    """
    from sfumato.cli.options import chosen_device, enough_memory
    from sfumato.estimate.machine import reach
    from sfumato.estimate.sampling import forecast_sampling
    from sfumato.training.workers import use_all_cores

    use_all_cores()
    chosen = chosen_device(flags.device)
    opened = _opened(flags.model, flags.autoencoder).to(chosen)
    found = reach(chosen)
    with enough_memory(flags.count, "a smaller --count or a smaller model"):
        sampling = forecast_sampling(opened, flags.count, found.speeds[found.best].convolution)
    if flags.as_json:
        typer.echo(to_json(facts(found, flags.model, sampling), indent=2))
    else:
        show_bench(found, flags.model, sampling)


def _opened(name: str, autoencoder: str | None) -> "LatentDiffusion":
    """A trained model, or the untrained one of a configuration."""
    from pathlib import Path

    from sfumato.config import ZOO_PREFIX, read_source
    from sfumato.errors import UserError

    if not name.startswith(ZOO_PREFIX) and Path(name).suffix not in (".yaml", ".yml"):
        from sfumato.model_folder import load

        if autoencoder is not None:
            raise UserError(f"--autoencoder is for a configuration, and {name!r} is a model with its own: leave it out")
        return load(name)
    from sfumato.estimate.sampling import untrained
    from sfumato.training.diffusion_run import DiffusionRun

    raw = read_source(name)
    if "denoiser" not in raw:
        raise UserError(f"{name!r} is not a stage 2 configuration: give one, such as {STANDARD}, or a trained model")
    first = first_stage_of(autoencoder, name, raw)
    return untrained(parsed(raw, None, DiffusionRun, name, first.config.image_size), first)


# ---- telling


def facts(found: "MachineSpeed", model: str, sampling: "SamplingForecast") -> dict[str, Any]:
    """All of it as JSON."""
    sampled = {**asdict(sampling), "seconds": sampling.seconds, "utilisation": _utilisation(found, sampling)}
    return {**asdict(found), "precision": found.best, "model": model, "sampling": sampled}


def show_bench(found: "MachineSpeed", model: str, sampling: "SamplingForecast") -> None:
    """All of it as tables."""
    from sfumato.cli.tables import show

    machine = found.machine
    threads = how_many(machine.threads, "thread")
    rows = [["machine", f"{machine.device}, {machine.cores} cores, {threads}, torch {machine.torch}"]]
    rows.append(["kernels", found.kernels.removeprefix("native kernels: ")])
    for name, speed in found.speeds.items():
        rows.append([name, f"matrix product {short(speed.matrix)}FLOP/s, convolution {short(speed.convolution)}FLOP/s"])
    if "bfloat16" not in found.speeds:
        rows.append(["bfloat16", "not native here: networks compute in float32"])
    rows.append(["memory", f"{found.bandwidth / 1e9:.3g} GB/s copied"])
    if found.share is not None and found.share < CALM:
        rows.append(
            ["but", f"other programs ran: this one had {found.share:.0%} of a core, expect more on a calm machine"]
        )
    show(None, rows)
    typer.echo("")
    show(None, _sampling(found, model, sampling))


def _sampling(found: "MachineSpeed", model: str, sampling: "SamplingForecast") -> list[list[str]]:
    H, W = sampling.image_size
    twice = ", each with and without the condition" if sampling.guided else ""
    share = _utilisation(found, sampling)
    return [
        [
            "model",
            f"{model}: {short(sampling.parameters)} parameters, {H} x {W} pixels, latent {_sides(sampling.latent)}",
        ],
        [
            "usual way",
            f"{sampling.sampler}, {how_many(sampling.steps, 'step')}, "
            f"{how_many(sampling.calls, 'network call')}{twice}; {found.best}",
        ],
        ["a call", f"{sampling.call_seconds * 1e3:.3g} ms an image, {share:.0%} of the convolution's rate"],
        ["decoding", f"{sampling.decode_seconds * 1e3:.3g} ms an image"],
        ["an image", f"{duration(sampling.seconds)} of {sampling.batch} at once"],
        [how_many(sampling.batch, "image"), duration(sampling.batch * sampling.seconds)],
    ]


def _utilisation(found: "MachineSpeed", sampling: "SamplingForecast") -> float:
    return sampling.call_operations / sampling.call_seconds / found.speeds[found.best].convolution


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
