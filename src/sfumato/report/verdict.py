"""Which of a prompt's facts the reader finds in an image, in lines: one per object, one for the scene."""

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.data.toyworld.facts import Fact, Score
from sfumato.report.measure import fact_text

ATTRIBUTES = ("size", "texture", "colour", "shape")


@dataclass(frozen=True)
class Verdict:
    """`lines` contain (words, whether the fact is true) for each fact."""

    right: int
    stated: int
    lines: tuple[tuple[tuple[str, bool], ...], ...]


def verdict_of(score: Score) -> Verdict:
    """The facts of a prompt, grouped by object and scene."""
    found = list(zip(score.facts, score.holds, strict=True))
    subjects = sorted({f.subject for f in score.facts if f.subject is not None and f.kind in ATTRIBUTES})
    of_objects = [
        sorted(
            ((fact, holds) for fact, holds in found if fact.kind in ATTRIBUTES and fact.subject == subject),
            key=lambda one: ATTRIBUTES.index(one[0].kind),
        )
        for subject in subjects
    ]
    of_scene = [(fact, holds) for fact, holds in found if fact.kind not in ATTRIBUTES]
    several = sum(fact.kind == "relation" for fact in score.facts) > 1
    return Verdict(sum(score.holds), len(score.holds), tuple(_line(one, several) for one in [*of_objects, of_scene]))


def _line(found: Sequence[tuple[Fact, bool]], several_relations: bool) -> tuple[tuple[str, bool], ...]:
    return tuple((_words(fact, several_relations), holds) for fact, holds in found)


def _words(fact: Fact, several_relations: bool) -> str:
    words = fact_text(fact)
    if several_relations and fact.kind == "relation" and fact.subject is not None:
        return f"{fact.subject + 1} {words} {fact.subject + 2}"
    return words
