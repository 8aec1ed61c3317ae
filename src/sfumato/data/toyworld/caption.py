"""Captions: a small grammar, generated and parsed.

A `Description` is what a caption states. Captions leave out the size now and then, the position or the background more
rarely; "plain" is the texture of an object without a texture word. `parse` parses every caption, including your own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.data.toyworld.scene import Scene
from sfumato.data.toyworld.vocabulary import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    plural,
)
from sfumato.errors import UserError

_NUMBERS = {number: word for word, number in COUNTS.items()}
_SINGULAR = {plural(shape): shape for shape in SHAPES}
_ORDERS = {"left of": "from left to right, ", "above": "from top to bottom, "}


@dataclass(frozen=True)
class Mention:
    """One noun phrase: `count` equal objects; `size` is None where it is not stated."""

    shape: str
    colour: str
    texture: str = "plain"
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Description:
    """The facts of a caption. `relation` holds between each mention and the next; None where nothing is stated."""

    mentions: tuple[Mention, ...]
    relation: str | None = None
    position: str | None = None
    background: str | None = None


def describe(scene: Scene) -> Description:
    """Everything that is true of a scene."""
    objects = scene.objects[:1] if scene.arrangement == "group" else scene.objects
    count = len(scene.objects) if scene.arrangement == "group" else 1
    mentions = tuple(Mention(t.shape, t.colour, t.texture, t.size, count) for t in objects)
    return Description(mentions, scene.relation, scene.position, scene.background)


def stated(scene: Scene) -> Description:
    """The facts that the caption of a scene states: its wording leaves some objects out."""
    full = describe(scene)
    wording = scene.wording
    # Objects of a row and of groups of three are always small: stating the size would add no information.
    silent = len(scene.objects) > 2 or wording % 8 == 0
    mentions = tuple(Mention(m.shape, m.colour, m.texture, None if silent else m.size, m.count) for m in full.mentions)
    position = None if wording // 8 % 8 == 0 else full.position
    background = None if wording // 64 % 16 == 0 else full.background
    return Description(mentions, full.relation, position, background)


def words(description: Description) -> str:
    """A description as a caption."""
    phrases = [_phrase(mention) for mention in description.mentions]
    if len(phrases) > 2:
        text = _ORDERS[description.relation or "left of"] + ", ".join(phrases[:-1]) + " and " + phrases[-1]
    else:
        text = f" {description.relation} ".join(phrases)
    if description.position:
        text += " " + description.position
    if description.background:
        text += f" on a {description.background} background"
    return text


def caption(scene: Scene) -> str:
    """The caption of a scene: exact and short; unique to the scene up to the details it leaves out."""
    return words(stated(scene))


def _phrase(mention: Mention) -> str:
    texture = "" if mention.texture == "plain" else mention.texture
    noun = plural(mention.shape) if mention.count > 1 else mention.shape
    parts = [part for part in (mention.size, texture, mention.colour, noun) if part]
    article = "an" if parts[0][0] in "aeiou" else "a"
    return " ".join([_NUMBERS[mention.count] if mention.count > 1 else article, *parts])


_ADJECTIVES = "|".join([*SIZES, *TEXTURES, *COLOURS])
_NOUNS = "|".join([*_SINGULAR, *SHAPES])
_NOUN_PHRASE = re.compile(
    rf"(?P<count>an?|the|{'|'.join(COUNTS)}) (?P<adjectives>(?:(?:{_ADJECTIVES}) )+)(?P<noun>{_NOUNS})\b"
)
_BACKGROUND = re.compile(rf" (?:on|against) an? ({'|'.join(BACKGROUNDS)}) background$")


def parse(text: str) -> Description:
    """Parses a caption; capitals, full stops and the order of adjectives do not matter.

    Raises UserError if the caption is outside the grammar.
    """
    rest = " ".join(text.lower().replace(".", " ").split())
    background = position = relation = None
    if match := _BACKGROUND.search(rest):
        background, rest = match[1], rest[: match.start()]
    for name in POSITIONS:
        if rest.endswith(" " + name):
            position, rest = name, rest[: -len(name) - 1]
    for name, order in _ORDERS.items():
        if rest.startswith(order):
            relation, rest = name, rest[len(order) :]
    mentions, gaps, end = [], [], 0
    for match in _NOUN_PHRASE.finditer(rest):
        gaps.append(rest[end : match.start()])
        mentions.append(_mention(text, match["count"], match["adjectives"].split(), match["noun"]))
        end = match.end()
    if not mentions or end != len(rest) or gaps[0]:
        raise _unreadable(text)
    if relation is None and len(mentions) == 2 and gaps[1].strip() in RELATIONS:
        relation = gaps[1].strip()
    elif len(mentions) > 1 and (relation is None or not set(gaps[1:]) <= {", ", " and ", ", and "}):
        raise _unreadable(text)
    return Description(tuple(mentions), relation, position, background)


def _mention(text: str, count: str, adjectives: Sequence[str], noun: str) -> Mention:
    kinds = [[word for word in adjectives if word in kind] for kind in (COLOURS, TEXTURES, SIZES)]
    number = COUNTS.get(count, 1)
    if len(kinds[0]) != 1 or max(len(kind) for kind in kinds) > 1 or (number > 1) != (noun in _SINGULAR):
        raise _unreadable(text)
    texture = kinds[1][0] if kinds[1] else "plain"
    size = kinds[2][0] if kinds[2] else None
    return Mention(_SINGULAR.get(noun, noun), kinds[0][0], texture, size, number)


def _unreadable(text: str) -> UserError:
    return UserError(
        f"caption {text!r} is outside the toy world's grammar; write for example "
        "'a small red circle above a large striped blue square on a white background'"
    )
