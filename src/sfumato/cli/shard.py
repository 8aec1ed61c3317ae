"""`sfumato shard`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from sfumato.cli.flags import REQUIRED, command, flag
from sfumato.counts import how_many
from sfumato.pipeline.options import Range

SHOWN = 5
"""Images that are named of those left out."""


@dataclass(frozen=True, kw_only=True)
class ShardFlags:
    """The options of `sfumato shard`."""

    data: str = flag(REQUIRED, "what to sample", "The images: a folder, or shards.", metavar="DIR", argument=True)
    overrides: list[str] | None = flag(
        None,
        "what to sample",
        "Settings as in training, such as data.leave_out=[test] or conditions.map={}.",
        metavar="[data.b=c]...",
        argument=True,
    )
    out: Path = flag(REQUIRED, "output", "The folder of the shards; an interrupted run there is resumed.")
    per_shard: int = flag(1000, "output", "Images in each shard.", range=Range(1, 1_000_000, whole=True))
    in_order: bool = flag(False, "output", "Keep the order of the images instead of shuffling them.")


@command(ShardFlags)
def shard(flags: ShardFlags) -> None:
    """Write a folder of images into tar files."""
    from sfumato.cli.data import stored_config
    from sfumato.cli.progress import bars
    from sfumato.cli.run_configuration import data_place
    from sfumato.config import apply_overrides, parse
    from sfumato.data.conditions.config import ConditionsConfig
    from sfumato.data.shards.writing import PLAN, write_shards
    from sfumato.data.table import open_images
    from sfumato.outputs import out_is_free, written
    from sfumato.training.conditions import data_config_for

    place = data_place(flags.data, "DIR")
    raw = apply_overrides({"data": {"path": place, "size": 1}, "conditions": {}}, flags.overrides or [])
    conditions = parse(raw["conditions"], ConditionsConfig, "conditions")
    config = data_config_for(stored_config(raw["data"]), conditions)
    sources = [Path(place)] if Path(place).exists() else []
    if not (flags.out / PLAN).is_file():
        out_is_free(flags.out, sources)
    with bars() as (say, progress), written(flags.out, begun=lambda: any(flags.out.glob("*.tar"))):
        dataset = open_images(config, scanning=progress("scanning"))  # type: ignore[arg-type]
        for note in dataset.notes:
            say(note)
        _list(dataset.unreadable, say)
        found = write_shards(dataset, flags.out, flags.per_shard, flags.in_order, conditions, progress("writing"))
    _list(found.lost, lambda line: typer.echo(line, err=True))
    typer.echo(f"{how_many(found.images, 'image')} in {how_many(found.shards, 'shard')}: train with --data {flags.out}")


def _list(lost: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Names the first images that are left out, and how many more there are."""
    for name, reason in lost[:SHOWN]:
        say(f"left out: {name}: {reason}")
    if len(lost) > SHOWN:
        say(f"left out: {len(lost) - SHOWN} more")
