"""Checkable statements about an image, and scoring them against a reading of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from sfumato.data.toyworld.caption import Description, caption, describe, parse, stated
from sfumato.data.toyworld.reader import Reading, Seen
from sfumato.data.toyworld.scene import FULL, Scene, Split, scene
from sfumato.data.toyworld.vocabulary import Vocabulary

KINDS: tuple[str, ...] = ("count", "shape", "colour", "size", "texture", "relation", "position", "background")
_CONSIDERED = 6  # objects of a reading that are matched with a caption


@dataclass(frozen=True)
class Fact:
    """One checkable statement. `subject`: the mention it is about (of a relation, the first of the two), else None."""

    kind: str
    value: str | int
    subject: int | None = None


@dataclass(frozen=True)
class Score:
    """Facts and which of them hold."""

    facts: tuple[Fact, ...]
    holds: tuple[bool, ...]

    @property
    def perfect(self) -> bool:
        """Whether every fact holds."""
        return all(self.holds)

    @property
    def fraction(self) -> float:
        """The part of the facts that hold."""
        return sum(self.holds) / len(self.holds)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """For each kind that is stated: how many hold, how many there are."""
        counts: dict[str, tuple[int, int]] = {}
        for fact, true in zip(self.facts, self.holds, strict=True):
            right, total = counts.get(fact.kind, (0, 0))
            counts[fact.kind] = right + true, total + 1
        return counts


class Prompt(NamedTuple):
    """A caption and everything that it states."""

    caption: str
    facts: tuple[Fact, ...]


def facts(source: Scene | Description | str) -> tuple[Fact, ...]:
    """All that is true of a scene, or all that a caption states; UserError for a caption outside the grammar."""
    if isinstance(source, Scene):
        description = describe(source)
    else:
        description = parse(source) if isinstance(source, str) else source
    mentions = description.mentions
    found = [Fact("count", sum(mention.count for mention in mentions))]
    for index, mention in enumerate(mentions):
        found += [Fact("shape", mention.shape, index), Fact("colour", mention.colour, index)]
        found += [Fact("texture", mention.texture, index)]
        if mention.size:
            found.append(Fact("size", mention.size, index))
    if description.relation:
        found += [Fact("relation", description.relation, index) for index in range(len(mentions) - 1)]
    if description.position:
        found.append(Fact("position", description.position, 0))
    if description.background:
        found.append(Fact("background", description.background))
    return tuple(found)


def score(stated_facts: Sequence[Fact], reading: Reading) -> Score:
    """Which facts hold in a reading.

    Where several objects are mentioned, each is a different object of the image, chosen so that most facts hold. A
    single mention of several objects ("three green stars") refers to every object in the image: its facts hold only
    if all of them agree.
    """
    mentions = 1 + max((fact.subject for fact in stated_facts if fact.subject is not None), default=-1)
    count = next((int(fact.value) for fact in stated_facts if fact.kind == "count"), mentions)
    if count > mentions:
        candidates: Iterable[tuple[tuple[Seen, ...], ...]] = [(reading.objects,) * mentions]
    else:
        seen: list[tuple[Seen, ...]] = [(thing,) for thing in reading.objects[:_CONSIDERED]]
        seen += [()] * (mentions - len(seen))
        candidates = permutations(seen, mentions)
    best = max(
        (tuple(_holds(fact, reading, chosen) for fact in stated_facts) for chosen in candidates),
        key=sum,
    )
    return Score(tuple(stated_facts), best)


def _holds(fact: Fact, reading: Reading, chosen: Sequence[tuple[Seen, ...]]) -> bool:
    if fact.kind == "count":
        return len(reading.objects) == fact.value
    if fact.kind == "background":
        return reading.background == fact.value
    subject = fact.subject or 0
    things = chosen[subject]
    if not things:
        return False
    if fact.kind == "relation":
        return bool(chosen[subject + 1]) and _relation(things[0], chosen[subject + 1][0], reading.aspect) == fact.value
    if fact.kind == "position":
        return all(_position(thing) == fact.value for thing in things)
    return all(getattr(thing, fact.kind) == fact.value for thing in things)


def _relation(first: Seen, second: Seen, aspect: float) -> str:
    across, down = (second.x - first.x) * aspect, second.y - first.y
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _position(thing: Seen) -> str:
    across, down = thing.x - 0.5, thing.y - 0.5
    if max(abs(across), abs(down)) < 0.12:
        return "in the middle"
    if min(abs(across), abs(down)) < 0.12:
        return "at an edge"  # no caption states it, so it never matches
    return f"at the {'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def prompts(n: int, split: Split = "held-out", seed: int = 0, vocabulary: Vocabulary = FULL) -> list[Prompt]:
    """Captions of the first `n` scenes of a split, with what they state, to score generated images against."""
    scenes = [scene(seed, index, split, vocabulary) for index in range(n)]
    return [Prompt(caption(one), facts(stated(one))) for one in scenes]


def tally(scores: Iterable[Score]) -> dict[str, float]:
    """Parts that hold: by kind, over all facts ("facts"), and of prompts with every fact right ("prompts")."""
    counts = dict.fromkeys(KINDS, (0, 0))
    perfect = total = 0
    for one in scores:
        perfect, total = perfect + one.perfect, total + 1
        for kind, (right, stated_) in one.by_kind().items():
            counts[kind] = counts[kind][0] + right, counts[kind][1] + stated_
    every = sum(right for right, _ in counts.values()), sum(stated_ for _, stated_ in counts.values())
    rates = {kind: right / stated_ for kind, (right, stated_) in counts.items() if stated_}
    return {**rates, "facts": every[0] / max(every[1], 1), "prompts": perfect / max(total, 1)}
