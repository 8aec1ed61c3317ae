"""Counts in sentences."""


def how_many(count: int, one: str, several: str | None = None) -> str:
    """The count with its noun, such as 1 image or 1,200 images; `several` where the plural has more than an s.

    With a verb: how_many(count, "file is", "files are").
    """
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def of_all(count: int, total: int, one: str, several: str) -> str:
    """The part of a whole with its noun and verb: of_all(1, 3, "images is", "images are")."""
    return f"{count:,} of {total:,} {one if count == 1 else several}"


def none_of(count: int, noun: str) -> str:
    """As `how_many` for what is missing: no image, or none of the 12 images."""
    return f"no {noun}" if count == 1 else f"none of the {how_many(count, noun)}"
