"""Text files beside the images that are not used, each with the reason, so that none is ignored silently."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from sfumato.data.captions import ENDINGS as CAPTIONS
from sfumato.data.textfile import shown

TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".xlsx", ".ods"})
OTHER_TEXT = frozenset({".xml", ".yaml", ".yml", ".md", ".rst", ".html", ".htm", ".toml", ".ini", ".log", ".cap"})

_TABLE = "tables are read from metadata.csv, metadata.jsonl, metadata.json or metadata.parquet"
_NO_CAPTION = "it belongs to no image of the set"
_SECOND = "the caption of its image comes from elsewhere"
_OTHER = "it is neither an image nor a caption nor metadata"


def texts_left_out(
    found: Sequence[str], read: Collection[str], foreign: Sequence[tuple[str, str]], images: Collection[str]
) -> list[tuple[str, str]]:
    """(file, reason) of all files with a text ending except those `read`; `images` are the files of the set."""
    reasons = dict(foreign)
    stems = {PurePosixPath(name).with_suffix("").as_posix().casefold() for name in images} | {
        name.casefold() for name in images
    }
    out = []
    for name in found:
        ending = PurePosixPath(name).suffix.casefold()
        if name in read:
            continue
        if name in reasons:
            out.append((name, reasons[name]))
        elif ending in CAPTIONS:
            own = PurePosixPath(name).with_suffix("").as_posix().casefold() in stems
            out.append((name, _SECOND if own else _NO_CAPTION))
        elif ending in TABLES:
            out.append((name, _TABLE))
        elif ending in OTHER_TEXT:
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
        f"{len(names)} {ending} ({shown(names[0])}: {reason})" for (ending, reason), names in groups.items()
    )
    return f"{len(left_out)} text files are not read: {listed}"
