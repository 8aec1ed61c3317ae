"""Which denoiser learns fastest in one recipe, at equal operations or at equal seconds, and what each of them costs.

    python -m benchmarks.denoisers costs

    python -m benchmarks.denoisers train --autoencoder runs/ae --out denoisers --steps 1000 --equal seconds --seeds 3

`costs` prints operations, milliseconds of a training step, and milliseconds of a network call. `train` gives the
reference, the recipe's own U-Net, the steps, and the others as many as cost the same; their kinds are sized to need
about the operations of that U-Net for a call. --also NAME=SETTINGS adds a denoiser of your own, or one with another
rate:

    --also 'convnext, rate 0.002=denoiser={kind: convnext, channels: 96, channel_multipliers: [1, 2], blocks: [4, 6]}
    train.optimiser.learning_rate=0.002'
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.ablation import Comparison, Raw, add_arguments, compare, recipe, run_config, table
from benchmarks.denoiser_cost import Cost, kept_costs
from benchmarks.denoiser_cost import table as cost_table
from sfumato.checkpoint import write_text
from sfumato.config import apply_overrides, load_config, read_source
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, ModelConfig, build
from sfumato.model_folder import load
from sfumato.report.machine import processor
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.data import height_width
from sfumato.training.diffusion_run import DiffusionRun

REFERENCE = "unet"
"""The recipe's own denoiser."""
SETTINGS: dict[str, tuple[str, ...]] = {
    REFERENCE: (),
    "convnext": ("denoiser={kind: convnext, channels: 96, channel_multipliers: [1, 2], blocks: [4, 6]}",),
    "dit, patch 1": ("denoiser={kind: dit, patch: 1, width: 128, depth: 6, heads: 4}",),
    "dit, patch 2": ("denoiser={kind: dit, patch: 2, width: 256, depth: 6, heads: 4}",),
}
"""What a variant changes in the recipe: settings as on the command line of `sfumato train diffusion`."""
ROUNDS = 7
"""In which costs are measured for `--equal seconds`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what the denoisers cost, or trains and scores what is not done yet."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    variants = {**SETTINGS, **dict(options.also)}
    names = [name for name in variants if name == REFERENCE or any(part in name for part in options.only.split(";"))]
    comparison = comparison_of(variants)
    if options.verb == "costs":
        raw = apply_overrides(read_source(options.config), options.overrides)
        first = untrained(options.first)
    else:
        first = load(options.autoencoder)
        raw = recipe(options, first)
    runs = {name: run_config(comparison, raw, name, 0, 1, 1) for name in names}
    if options.verb == "costs":
        _print_costs(options, runs, first)
        return
    known = kept_costs(options.out / "costs.json", runs, first, ROUNDS)
    write_text(options.out / "costs.md", cost_table(known, REFERENCE))
    records = compare(
        comparison, options, first, raw, names, lambda name: steps_of(known, name, options.steps, options.equal)
    )
    if records is None:
        sys.exit(130)
    print(table(comparison, records))


def _print_costs(options: argparse.Namespace, runs: dict[str, DiffusionRun], first: LatentDiffusion) -> None:
    file = options.out / "costs.json" if options.out else None
    found = kept_costs(file, runs, first, options.rounds)
    batch, size = next(iter(runs.values())).train.batch, height_width(next(iter(runs.values())).data)
    latent = "x".join(map(str, first.latent_shape_of(size)))
    print(f"{processor()}, threads: {options.threads}, torch {torch.__version__}, float32")
    print(f"latents of {latent}, training steps of {batch}; times in CPU milliseconds, medians\n")
    print(cost_table(found, REFERENCE))


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.denoisers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    costs = verbs.add_parser("costs", help="print what each denoiser costs")
    costs.add_argument("overrides", nargs="*", help="settings to change in every run, such as train.batch=16")
    costs.add_argument("--first", default="zoo:toy/small-autoencoder", help="a configuration of stage 1, untrained")
    costs.add_argument("--rounds", type=int, default=7)
    costs.add_argument("--out", type=Path, help="a folder for costs.json; what it has is not measured again")
    train = verbs.add_parser("train", help="train and score each denoiser")
    add_arguments(train)
    train.add_argument("--steps", type=int, required=True, help="of the recipe's own denoiser")
    train.add_argument("--equal", choices=("operations", "seconds"), default="seconds", help="as many as cost the same")
    for verb in (costs, train):
        verb.add_argument("--config", default="zoo:toy/small-text", help="the recipe whose denoiser is replaced")
        verb.add_argument("--only", default="", help="variants that contain one of these, parted by ; beside the unet")
        verb.add_argument("--also", type=_named, action="append", default=[], metavar="NAME=SETTINGS")
        verb.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.threads < 1 or min(getattr(options, name, 1) for name in ("rounds", "steps", "seeds")) < 1:
        parser.error("--threads, --rounds, --steps and --seeds take at least 1")
    return options


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    """NAME=SETTINGS, the settings parted by spaces outside braces and brackets."""
    name, equals, settings = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=SETTINGS")
    found, depth = [""], 0
    for letter in settings:
        depth += (letter in "{[") - (letter in "}]")
        if letter.isspace() and depth == 0:
            found.append("")
        else:
            found[-1] += letter
    return name, tuple(setting for setting in found if setting)


def comparison_of(variants: dict[str, tuple[str, ...]]) -> Comparison:
    """The comparison of these variants; a variant that names a kind replaces the recipe's denoiser as a whole."""

    def changed(raw: Raw, name: str) -> Raw:
        return apply_overrides(raw, variants[name], DiffusionRun)

    return Comparison("denoiser", REFERENCE, f"time to the {REFERENCE}'s", changed)


def steps_of(known: dict[str, Cost], name: str, steps: int, equal: str) -> int:
    """The steps of a variant that cost as much as `steps` of the reference."""
    own, base = known[name], known[REFERENCE]
    ratio = base.step_operations / own.step_operations if equal == "operations" else base.step_ms / own.step_ms
    return max(1, round(steps * ratio))


def untrained(config: str) -> LatentDiffusion:
    """The first stage of a configuration, without training."""
    run = load_config(config, [], AutoencoderRun)
    return build(ModelConfig(autoencoder=run.model, image_size=height_width(run.data)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"denoisers: {error}", file=sys.stderr)
        sys.exit(2)
