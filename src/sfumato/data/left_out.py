"""Files beside the images that are not read, each with the reason, so that none is ignored silently."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from sfumato.counts import how_many
from sfumato.data.captions import ENDINGS as CAPTIONS
from sfumato.data.opening import is_image, why_not
from sfumato.data.textfile import shown

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".xlsx", ".ods"})
_TABLE = "tables are read from metadata.csv, metadata.jsonl, metadata.json or metadata.parquet"
_NO_CAPTION = "it belongs to no image of the set"
_SECOND = "the caption of its image comes from elsewhere"
_OTHER = "its ending is none of an image, a caption or metadata"
_GROUPS = 6  # of ending and reason, that the sentence names


def texts_left_out(
    found: Sequence[str], read: Collection[str], foreign: Sequence[tuple[str, str]], images: Collection[str]
) -> list[tuple[str, str]]:
    """(file, reason) of all files except images and those `read`; `images` are the files of the set."""
    reasons, own_files = dict(foreign), {*read, *images}
    stems = {PurePosixPath(name).with_suffix("").as_posix().casefold() for name in images} | {
        name.casefold() for name in images
    }
    out = []
    for name in found:
        ending = PurePosixPath(name).suffix.casefold()
        if name in own_files or is_image(name) or why_not(name) is not None:
            continue
        if name in reasons:
            out.append((name, reasons[name]))
        elif ending in CAPTIONS:
            own = PurePosixPath(name).with_suffix("").as_posix().casefold() in stems
            out.append((name, _SECOND if own else _NO_CAPTION))
        elif ending in TABLES:
            out.append((name, _TABLE))
        else:
            out.append((name, _OTHER))
    return out


def left_out_note(left_out: Sequence[tuple[str, str]]) -> str | None:
    """One sentence: counts by ending, each with an example and its reason; None if there are no such files."""
    if not left_out:
        return None
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, reason in left_out:
        groups[(PurePosixPath(name).suffix.casefold(), reason)].append(name)
    listed = "; ".join(
        f"{len(names)} {ending or 'without an ending'} ({shown(names[0])}: {reason})"
        for (ending, reason), names in list(groups.items())[:_GROUPS]
    )
    listed += "; …" if len(groups) > _GROUPS else ""
    return f"{how_many(len(left_out), 'other file is', 'other files are')} not read: {listed}"
