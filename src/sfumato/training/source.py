"""A key in a run's states, which shows whether a resumed run still has the same data and autoencoder."""

from typing import Any, Protocol

PREFIX = "2:"
"""Starts every key. States of earlier versions have keys without it, from which today's cannot be derived."""
NOTE = "source"
"""The key's name among the notes of a state."""
CHANGED = "the data has changed since the run began: from here on it differs from an uninterrupted run"
UNCHECKED = (
    "the saved state is of an earlier version of sfumato, which identified data in another way: whether the run still "
    "has the data and the autoencoder it began with could not be checked"
)


class Identified(Protocol):
    """A dataset that can name its content."""

    def fingerprint(self) -> str: ...


def source_key(source: Identified, *further: str) -> str:
    """The key of a dataset, and of what else the run learns from, such as a codebook."""
    return PREFIX + "-".join((source.fingerprint(), *further))


def is_same(stored: Any, key: str) -> bool | None:
    """Whether a state's key names the same data as today's `key`; None where it is of an earlier version.

    A state without any key counts as the same.
    """
    if stored is None or stored == key or stored == key.removeprefix(PREFIX):
        return True
    return None if isinstance(stored, str) and not stored.startswith(PREFIX) else False
