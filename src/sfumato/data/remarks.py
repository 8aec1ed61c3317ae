"""Changes to images before training, in one sentence for each kind of change.

A header's `remark` is about one image, and is part of what identifies the prepared pixels (`pixel_key`), so its words
must stay. Here the remarks of many images become sentences.
"""

import re
from collections.abc import Mapping, Sequence

from sfumato.counts import how_many
from sfumato.data.textfile import shown

NAMED = 3
"""Different profiles, or different reasons, that a sentence names."""
_CONVERTED = re.compile(r"its colour profile \((?P<what>.*)\) was converted to sRGB")
_LAB = re.compile(r"its CIE Lab colours were converted to sRGB")
_UNFIT = re.compile(r"its colour profile (?P<what>is for .* and does not fit an image of the mode .*): it is ignored")
_DAMAGED = re.compile(r"its colour profile is damaged \((?P<what>.*)\): it is ignored")
_NOT_FINITE = re.compile(r"\d[\d,]* pixels? (is|are) not finite: infinite ones are clipped, NaN is black")


def sentences_of(remarks: Mapping[str, str]) -> list[str]:
    """One sentence for each kind of remark, by file; a remark of no known kind is quoted."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, remark in remarks.items():
        kind, what = _kind(remark)
        kinds.setdefault(kind, {}).setdefault(what, []).append(name)
    return [_sentence(kind, found) for kind, found in kinds.items()]


def _kind(remark: str) -> tuple[str, str]:
    """The kind of a remark, and what differs between remarks of one kind."""
    patterns = {"profile": _CONVERTED, "lab": _LAB, "unfit": _UNFIT, "damaged": _DAMAGED, "not finite": _NOT_FINITE}
    for kind, pattern in patterns.items():
        if (match := pattern.fullmatch(remark)) is not None:
            return kind, match.groupdict().get("what", "")
    return remark, ""


def _sentence(kind: str, found: Mapping[str, Sequence[str]]) -> str:
    names = [name for each in found.values() for name in each]
    whats, one = list(found), len(names) == 1
    listed = ", ".join(whats[:NAMED]) + (f" and {len(whats) - NAMED} more" if len(whats) > NAMED else "")
    have = how_many(len(names), "image has", "images have")
    example = f": {shown(names[0])}" if one else f", such as {shown(names[0])}"
    match kind:
        case "profile":
            return f"{have} a colour profile ({listed}) and {'is' if one else 'are'} converted to sRGB{example}"
        case "lab":
            return f"{have} CIE Lab colours and {'is' if one else 'are'} converted to sRGB{example}"
        case "unfit":
            return f"{have} a colour profile that is ignored, as it {listed}{example}"
        case "damaged":
            return f"{have} a damaged colour profile ({listed}), which is ignored{example}"
        case "not finite":
            return f"{have} pixels that are not finite (infinite ones are clipped, NaN is black){example}"
    return f"{how_many(len(names), 'image')}{example}: {kind}"
