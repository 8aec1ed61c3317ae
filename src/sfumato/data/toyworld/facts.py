"""Checkable facts about an image, and comparing them with what the reader found in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

from sfumato.data.toyworld.caption import Description, caption, describe, parse, stated
from sfumato.data.toyworld.reader import DetectedObject, Reading
from sfumato.data.toyworld.scene import FULL, Scene, Split, scene
from sfumato.data.toyworld.vocabulary import Vocabulary

KINDS: tuple[str, ...] = ("count", "shape", "colour", "size", "texture", "relation", "position", "background")
_CONSIDERED = 6  # objects of a reading that are matched with a caption's mentions


@dataclass(frozen=True)
class Fact:
    """One checkable statement. `subject`: the mention it is about (for a relation, the first of the two), else None."""

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
        """Whether all facts are true."""
        return all(self.holds)

    @property
    def fraction(self) -> float:
        """The share of true facts."""
        return sum(self.holds) / len(self.holds)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """For each stated kind: (number of true facts, number of facts)."""
        counts: dict[str, tuple[int, int]] = {}
        for fact, true in zip(self.facts, self.holds, strict=True):
            right, total = counts.get(fact.kind, (0, 0))
            counts[fact.kind] = right + true, total + 1
        return counts


class Prompt(NamedTuple):
    """A caption and the facts that it states."""

    caption: str
    facts: tuple[Fact, ...]


def facts(source: Scene | Description | str) -> tuple[Fact, ...]:
    """All facts of a scene or of a caption; raises UserError for a caption outside the grammar."""
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
    """Which facts are true of a reading.

    If several objects are mentioned, each mention is matched with a different object of the image such that the most
    facts are true. A single mention of several objects ("three green stars") refers to every object in the image: its
    facts are true only if all of them agree.
    """
    mentions = 1 + max((fact.subject for fact in stated_facts if fact.subject is not None), default=-1)
    count = next((int(fact.value) for fact in stated_facts if fact.kind == "count"), mentions)
    if count > mentions:
        candidates: Iterable[tuple[tuple[DetectedObject, ...], ...]] = [(reading.objects,) * mentions]
    else:
        seen: list[tuple[DetectedObject, ...]] = [(item,) for item in reading.objects[:_CONSIDERED]]
        seen += [()] * (mentions - len(seen))
        candidates = permutations(seen, mentions)
    best = max(
        (tuple(_holds(fact, reading, chosen) for fact in stated_facts) for chosen in candidates),
        key=sum,
    )
    return Score(tuple(stated_facts), best)


def _holds(fact: Fact, reading: Reading, chosen: Sequence[tuple[DetectedObject, ...]]) -> bool:
    if fact.kind == "count":
        return len(reading.objects) == fact.value
    if fact.kind == "background":
        return reading.background == fact.value
    subject = fact.subject or 0
    objects = chosen[subject]
    if not objects:
        return False
    if fact.kind == "relation":
        return bool(chosen[subject + 1]) and _relation(objects[0], chosen[subject + 1][0], reading.aspect) == fact.value
    if fact.kind == "position":
        return all(_position(item) == fact.value for item in objects)
    return all(getattr(item, fact.kind) == fact.value for item in objects)


def _relation(first: DetectedObject, second: DetectedObject, aspect: float) -> str:
    across, down = (second.x - first.x) * aspect, second.y - first.y
    if abs(across) > abs(down):
        return "left of" if across > 0 else "right of"
    return "above" if down > 0 else "below"


def _position(item: DetectedObject) -> str:
    across, down = item.x - 0.5, item.y - 0.5
    if max(abs(across), abs(down)) < 0.12:
        return "in the middle"
    if min(abs(across), abs(down)) < 0.12:
        return "at an edge"  # no caption states this, so it is never correct
    return f"at the {'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"


def prompts(n: int, split: Split = "held-out", seed: int = 0, vocabulary: Vocabulary = FULL) -> list[Prompt]:
    """Captions of the first `n` scenes of a split with their facts, for scoring generated images."""
    scenes = [scene(seed, index, split, vocabulary) for index in range(n)]
    return [Prompt(caption(one), facts(stated(one))) for one in scenes]


def tally(scores: Iterable[Score]) -> dict[str, float]:
    """Shares of true facts: by kind, over all facts ("facts"), and of prompts with all facts true ("prompts")."""
    counts = dict.fromkeys(KINDS, (0, 0))
    perfect = total = 0
    for one in scores:
        perfect, total = perfect + one.perfect, total + 1
        for kind, (right, stated_) in one.by_kind().items():
            counts[kind] = counts[kind][0] + right, counts[kind][1] + stated_
    every = sum(right for right, _ in counts.values()), sum(stated_ for _, stated_ in counts.values())
    rates = {kind: right / stated_ for kind, (right, stated_) in counts.items() if stated_}
    return {**rates, "facts": every[0] / max(every[1], 1), "prompts": perfect / max(total, 1)}
