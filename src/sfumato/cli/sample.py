"""`sfumato sample`: images from whatever model it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.flags import REQUIRED, Flag, Form, command, flag, flags_of
from sfumato.cli.forms import FORMS, SAMPLING, request_flags
from sfumato.cli.guides import GuideFlags, opened_guides
from sfumato.cli.machine import ModelFlags
from sfumato.cli.sample_codes import CodeFlags, one_scale, sample_codes
from sfumato.cli.sample_diffusion import sample_diffusion, sampler_line
from sfumato.cli.sample_rows import SampleSpec, read_prompts, sample_spec
from sfumato.cli.sample_shared import own_share, sample_share
from sfumato.errors import UserError
from sfumato.pipeline.options import Range
from sfumato.pipeline.request import STEPS

if TYPE_CHECKING:
    import torch

    from sfumato.baselines.model import CodeModel
    from sfumato.model import LatentDiffusion
    from sfumato.pipeline.request import SampleRequest

SHARED = request_flags(
    *SAMPLING,
    forms={
        "count": replace(
            FORMS["count"], hint="Of each prompt or label; the default is 4 of one, 1 of each of several."
        ),
        "seed": Form(hint="The default is 0."),
    },
    seed=None,  # to know whether it is given beside --seeds
)
OF_CODES = ("prompt", "label", "count", "seed", "seeds", "guidance", "batch")
"""Options of a request that a transformer over codes has too."""


@dataclass(frozen=True, kw_only=True)
class SampleFlags(CodeFlags, GuideFlags, ModelFlags):
    """The options of `sfumato sample` beside those of a request."""

    out: Path = flag(REQUIRED, "output", "The folder for the images; in one that is in use, numbering continues.")
    prompts_file: Path | None = flag(
        None, "what to sample", "A text file with a prompt on each line.", names=("--prompts",), metavar="FILE"
    )
    same_seed: bool = flag(
        False, "what to sample", "One seed for all images, to compare prompts or scales.", names=("--same-seed",)
    )
    resume: bool = flag(
        False,
        "output",
        "Number images by their place in the request, and skip those that exist.",
        names=("--resume",),
    )
    why: bool = flag(False, "sampler", "Explain the choice of sampler and grid.", names=("--why",))
    strip: int = flag(
        0,
        "output",
        "Also write the expected image at K steps of the sampling loop.",
        Range(0, STEPS.high, whole=True),
        metavar="K",
    )
    preview_every: int = flag(
        0,
        "output",
        "Update OUT/preview.png every K steps while sampling.",
        Range(0, STEPS.high, whole=True),
        metavar="K",
    )


@command(SampleFlags, SHARED)
def sample(flags: SampleFlags, options: dict[str, Any]) -> None:
    """Sample images from a trained model.

    MODEL is a diffusion model, a transformer over codes (the baseline), a run, or a run's snapshot. Writes
    OUT/0000.png ..., each with its prompt, seed and settings inside, and OUT/grid.png.
    """
    from sfumato.baselines.model import CodeModel
    from sfumato.cli.options import chosen_autocast, chosen_device, out_folder
    from sfumato.pipeline.choices import check_names
    from sfumato.pipeline.request import SampleRequest
    from sfumato.training.workers import use_all_cores

    spec = _spec(flags, options)
    rows = {"prompt": spec.prompts, "label": spec.labels, "count": len(spec.seeds), "seed": spec.seeds[0]}
    request = SampleRequest(**options | rows | {"seeds": spec.seeds})
    check_names(request)
    use_all_cores()
    device = chosen_device(flags.device)
    computing = chosen_autocast(device, flags.precision)
    model = opened_model(flags.model, device)
    if isinstance(model, CodeModel):
        _check_of_codes(flags, options)
        scale = one_scale("--guidance", options["guidance"])
        sample_codes(model, spec, flags, 1.0 if scale is None else scale, request.batch, out_folder(flags.out))
    else:
        _check_of_diffusion(flags, model)
        _sample_diffusion(flags, request, model, device, computing)


def opened_model(path: Path, device: "torch.device") -> "LatentDiffusion | CodeModel":
    """The model of a folder or a run, of whatever kind, or that of the file of a snapshot. Raises UserError."""
    from sfumato.baselines.model import is_code_model, load_code_model
    from sfumato.conditioning.sources import fetching
    from sfumato.model_folder import load
    from sfumato.training.averages.snapshots import FOLDER, load_snapshot

    with fetching(typer.echo):
        if is_code_model(path):
            return load_code_model(path, device)
        if path.is_file() and path.parent.name == FOLDER:
            return load_snapshot(path, device=device)
        return load(path, device)


def _sample_diffusion(
    flags: SampleFlags,
    request: "SampleRequest",
    model: "LatentDiffusion",
    device: "torch.device",
    computing: "torch.autocast",
) -> None:
    from sfumato.cli.cost import say_cost
    from sfumato.cli.options import enough_memory, made_fast, out_folder
    from sfumato.cli.writing import model_name
    from sfumato.estimate.images import sampling
    from sfumato.pipeline.plan import plan

    guides = opened_guides(flags, model, request.size or model.config.image_size, device)
    request = replace(request, **guides)
    planned = plan(model, request)
    for note in planned.notes:
        typer.echo(f"warning: {note}", err=True)
    if line := sampler_line(planned, flags.why):
        typer.echo(line)
    folder = out_folder(flags.out)
    work = sampling(model, request, planned.size, planned.count)
    say_cost(work, device, computing, "give a smaller --size, fewer --steps or fewer images")
    differentiable = request.image_guidance is not None  # packed networks have no gradients
    within = computing if differentiable else made_fast(model, computing)
    if request.autoguide is not None and not differentiable:
        made_fast(guides["autoguide"], computing)
    with within, enough_memory(min(request.batch, planned.count)):
        name = model_name(flags.model)
        share = own_share()
        if share.world > 1 or flags.resume:
            _check_shared(flags)
            sample_share(model, request, planned, folder, flags.facts(), share, name)
            return
        sample_diffusion(model, request, planned, folder, flags.facts(), flags.strip, flags.preview_every, name)


def _check_shared(flags: SampleFlags) -> None:
    """Raises UserError for what belongs to a single process that samples all images."""
    for option, value in (("--strip", flags.strip), ("--preview-every", flags.preview_every)):
        if value:
            raise UserError(f"{option} does not go with several processes or --resume: leave it out")


def _spec(flags: SampleFlags, options: Mapping[str, Any]) -> SampleSpec:
    """An entry for each image. Raises UserError."""
    from_file = [] if flags.prompts_file is None else read_prompts(flags.prompts_file)
    prompts = [*(options["prompt"] or ()), *from_file] or None
    given = {name: options[name] for name in ("count", "seed", "seeds")}
    return sample_spec(prompts, options["label"], **given, same_seed=flags.same_seed)


def _check_of_codes(flags: SampleFlags, options: Mapping[str, Any]) -> None:
    """Raises UserError for an option that only diffusion models have."""
    kept = {*OF_CODES, "model", "out", "prompts_file", "same_seed", "device", *_own(CodeFlags)}
    values = {**options, **{each.name: getattr(flags, each.name) for each in fields(flags)}}
    for one in _not_usual([*SHARED, *flags_of(SampleFlags)], values):
        if one.option.name not in kept:
            raise UserError(
                f"{one.title} is an option of diffusion models, and {str(flags.model)!r} is a transformer over codes: "
                "leave it out"
            )


def _check_of_diffusion(flags: SampleFlags, model: "LatentDiffusion") -> None:
    """Raises UserError for an option that only transformers over codes have, and for an autoencoder."""
    if model.second is None:
        raise UserError(f"{str(flags.model)!r} is an autoencoder only: train a diffusion model on it to sample images")
    for one in _not_usual(flags_of(CodeFlags), {name: getattr(flags, name) for name in _own(CodeFlags)}):
        raise UserError(
            f"{one.title} is an option of transformers over codes, and {str(flags.model)!r} is a diffusion model: "
            "leave it out"
        )


def _not_usual(flags: Sequence[Flag], values: Mapping[str, Any]) -> list[Flag]:
    """Those whose value is not the default."""
    return [one for one in flags if not one.required and values[one.option.name] != one.option.default]


def _own(declared: type) -> list[str]:
    return [one.option.name for one in flags_of(declared)]
