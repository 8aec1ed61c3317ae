"""The choice of a folder's condition, its reason, and the fields that are not used."""

from sfumato.counts import how_many, of_all
from sfumato.fit.facts import ConditionerKind, DataFacts


def conditioner_of(data: DataFacts) -> ConditionerKind:
    """The condition of a model of this folder: maps, boxes, captions, classes, in this order."""
    if data.maps:
        return "semantic"
    if data.boxes:
        return "layout"
    if 2 * data.captioned >= data.images and data.captions > 1:
        return "text"
    return "class" if len(data.classes) > 1 else "none"


def why_conditioned(data: DataFacts, kind: ConditionerKind) -> str:
    """The sentence on the model's condition, with its reason."""
    match kind:
        case "semantic":
            return "The model is conditioned on the label maps in maps/."
        case "layout":
            return "The model is conditioned on boxes."
        case "text":
            have = of_all(data.captioned, data.images, "images has one", "images have one")
            return f"The model is conditioned on captions: {have}, with {data.captions:,} different ones."
        case "class":
            classes = how_many(len(data.classes), "class", "classes")
            return f"The model is conditioned on {classes}, the sub-folders or labels of the images."
    return "The model is unconditional: a condition needs captions for half of the images, or several classes."


def unused(data: DataFacts, kind: ConditionerKind) -> list[str]:
    """A sentence on captions and classes that the model is not conditioned on; none if there are none."""
    found = []
    if data.captioned and kind != "text":
        some = of_all(data.captioned, data.images, "images has", "images have")
        why = "all are the same" if data.captions < 2 else "too few" if 2 * data.captioned < data.images else ""
        found.append(f"captions, which {some}{why and f' ({why})'}")
    if len(data.classes) > 1 and kind != "class":
        found.append(f"{how_many(len(data.classes), 'class', 'classes')}, the sub-folders or labels")
    return [f"Not used as a condition: {' and '.join(found)}."] if found else []
