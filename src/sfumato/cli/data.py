"""`sfumato data`."""

import shlex
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, Any, get_args

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.counts import how_many

if TYPE_CHECKING:
    from sfumato.data.survey import Survey
    from sfumato.data.table import StoredConfig

SIDES = (32, 64, 128, 256, 512)
CAPTIONS_SHOWN = 5
CROPPED = 0.1
"""The share of the images cropped away from which on buckets are mentioned."""
STEPS = (8, 16, 32, 64)
LEAST_STEPS = 4
"""Buckets are recommended with the largest of STEPS that is this often in a side of the square."""
MAX_TOKENS = 24
"""Tokens of a caption that zoo:emoji/text reads."""
TEXTS_COUNTED = 50_000
"""Captions at most that a tokenizer is fitted on and whose tokens are counted."""


@dataclass(frozen=True, kw_only=True)
class DataFlags:
    """The options of `sfumato data`."""

    folder: str = flag(REQUIRED, "what to sample", "The folder of images, or shards.", metavar="DIR", argument=True)
    overrides: list[str] | None = flag(
        None,
        "what to sample",
        "Settings as in training, such as data.size=128 or data.encoding=cp1252.",
        metavar="[data.b=c]...",
        argument=True,
    )
    as_json: bool = flag(False, "output", "The same as one JSON object, with every file.", names=("--json",))


@command(DataFlags)
def data(flags: DataFlags) -> None:
    """Inspect a folder of images before training."""
    from sfumato.cli.progress import bars
    from sfumato.cli.run_configuration import check_given_once, data_place
    from sfumato.config import apply_overrides, parse
    from sfumato.data.survey import survey
    from sfumato.data.table import open_images
    from sfumato.training.data import HeldOut, groups_of, split_rows

    overrides = flags.overrides or []
    check_given_once(overrides, {"data.path": ("DIR", flags.folder)})
    raw = apply_overrides({"data": {"path": data_place(flags.folder, "DIR")}, "held_out": {}}, overrides)
    config = stored_config(raw["data"])
    with bars(active=not flags.as_json) as (say, progress):
        dataset = open_images(config, scanning=progress("scanning"))
        held_out = parse(raw["held_out"], HeldOut, "held_out")
        aside = split_rows(dataset, held_out, groups_of(dataset, held_out.by, say))[1]
        found = survey(dataset, aside, progress=progress("looking at the pixels"))
    if flags.as_json:
        typer.echo(found.dumped(recommended=recommended(found, overrides), caption_tokens=caption_tokens(found)))
    else:
        text = "\n".join(lines(found, overrides))
        typer.echo(text.encode(errors="backslashreplace").decode())


def stored_config(given: dict[str, Any]) -> "StoredConfig":
    """The configuration of stored images at `path`, of the given kind or that of the place. Raises UserError."""
    from sfumato.config import parse
    from sfumato.data.kinds import kind_of
    from sfumato.data.table import StoredConfig
    from sfumato.errors import UserError

    kinds = {model.model_fields["kind"].default: model for model in get_args(StoredConfig)}
    kind = given.get("kind") or kind_of(str(given["path"]))
    if kind not in kinds:
        raise UserError(f"data.kind {kind!r} is none of {', '.join(kinds)}")
    return parse({**given, "kind": kind}, kinds[kind], "data")


def recommended(found: "Survey", settings: Sequence[str] = ()) -> dict[str, Any]:
    """Size, f, conditioner and a command for this folder; the command keeps the `settings` that were given.

    The size is the largest usual one that three in four images have, with buckets by their areas; f leaves latents of
    16 to 64 a side (table 8 of the paper has f = 4 and 8 best).
    """
    import numpy as np

    scan = found.dataset.scan
    several = found.dataset.config.buckets is not None
    sides = [sqrt(seen.width * seen.height) if several else min(seen.width, seen.height) for seen in scan.headers]
    enough = float(np.quantile(sides, 0.25))
    size = max((side for side in SIDES if side <= enough), default=SIDES[0])
    captioned = len(found.captions()) / len(scan.files)
    kind = "text" if captioned >= 0.5 else "class" if scan.labels is not None else "none"
    zoo = "zoo:emoji/autoencoder" if size <= 128 else "zoo:ldm/kl-f4" if size == 256 else "zoo:ldm/kl-f8"
    kept = [one for one in settings if not one.startswith("data.size=")]
    words = ["sfumato", "train", "autoencoder", zoo, f"data.size={size}", *kept, "--data", scan.title]
    command = shlex.join([*words, "--out", "runs/autoencoder"])
    return {"size": size, "f": 8 if size > 256 else 4, "conditioner": kind, "command": command}


def cropping_line(found: "Survey", size: int) -> str:
    """How much of the images is cropped away, in which buckets they are, or what buckets would save at a `size`."""
    from sfumato.data.buckets import BucketsConfig

    config = found.dataset.config
    lost = f"cropped away: {found.cropped_away():.0%} of an image on average"
    if config.buckets is not None:
        held = ", ".join(f"{name} {count}" for name, count in found.buckets().items())
        return f"buckets (height x width): {held}; {lost}"
    if config.resize == "pad" or found.cropped_away() < CROPPED:
        return lost
    buckets = BucketsConfig(step=max(step for step in STEPS if size % step == 0 and size // step >= LEAST_STEPS))
    dataset = copy(found.dataset)
    dataset.config = config.model_copy(update={"size": size, "buckets": buckets})
    instead = replace(found, dataset=dataset).cropped_away()
    return f"{lost}; {instead:.0%} with several sizes instead of one: 'data.buckets={{step: {buckets.step}}}'"


def caption_tokens(found: "Survey") -> dict[str, Any] | None:
    """Tokens of the different captions, start and end included, by a tokenizer fitted on them as training fits one.

    `too_long` are those that zoo:emoji/text would cut. None without captions.
    """
    from sfumato.conditioning.tokenizer import Texts, fit_tokenizer

    texts = list(dict.fromkeys(found.texts()))[:TEXTS_COUNTED]
    if not texts:
        return None
    counts = sorted(Texts(fit_tokenizer(texts), MAX_TOKENS).counts(texts))
    return {
        "shortest": counts[0],
        "median": counts[len(counts) // 2],
        "longest": counts[-1],
        "max_tokens": MAX_TOKENS,
        "too_long": sum(count > MAX_TOKENS for count in counts),
    }


def lines(found: "Survey", settings: Sequence[str] = ()) -> list[str]:
    """The form for people."""
    from sfumato.data.labels import counted
    from sfumato.data.textfile import shown

    scan = found.dataset.scan
    report = [f"{how_many(len(scan.files), 'image')} in {scan.title}"]
    longest = max(found.sizes().values())
    report += [f"  {name:>14}  {'#' * max(1, 40 * n // longest)} {n}" for name, n in found.sizes().items()]
    report.append("formats: " + ", ".join(f"{ending} {n}" for ending, n in found.formats().items()))
    report.append(cropping_line(found, recommended(found, settings)["size"]))
    captions, texts = found.captions(), list(dict.fromkeys(found.texts()))
    count = caption_tokens(found)
    if count is not None:
        some = how_many(len(captions), "image has", "images have")
        report.append(
            f"captions: {some} some, {len(texts)} different ones of {count['shortest']} to {count['longest']} tokens, "
            f"half of at most {count['median']}; {count['too_long']} are longer than "
            f"the {MAX_TOKENS} that zoo:emoji/text reads"
            + (f": conditioner.max_tokens={count['longest']}" if count["too_long"] else "")
        )
        report += [f"  {shown(text)}" for text in texts[:CAPTIONS_SHOWN]]
    else:
        report.append("captions: none")
    counts = found.dataset.label_counts()
    report.append(f"classes: {len(counts)}: {counted(counts)}" if counts else "classes: none")
    report += [f"! {warning}" for warning in found.warnings()]
    report += [f"  {name}: {reason}" for name, reason in found.unreadable[:CAPTIONS_SHOWN]]
    advice = recommended(found, settings)
    report.append(
        f"recommended: size {advice['size']}, f = {advice['f']}, conditioner {advice['conditioner']}; "
        "about this folder in full: --json"
    )
    return [*report, f"  {advice['command']}"]
