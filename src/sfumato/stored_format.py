"""Formats of stored configurations: those of models and runs written by earlier versions are converted when read."""

from collections.abc import Mapping
from typing import Any, Final

from sfumato.errors import UserError

FORMAT: Final = 2
"""The current format. Format 1 called the paper's schedule "linear" and the linear one "sqrt-linear", and had the
conditioning metadata under `inputs`; a run of format 1 has no format key."""
KEY = "format"
_SCHEDULES = {"linear": "scaled-linear", "sqrt-linear": "linear"}


def upgraded(raw: Mapping[str, Any], source: str, of_run: bool = False) -> dict[str, Any]:
    """The mapping of a configuration file in the current format, without its format key.

    Args:
        raw: as read.
        source: names the file in errors.
        of_run: the file was written by a training: without a format key it is of format 1. A user's own file without
            one is of the current format.

    Raises:
        UserError: the format is unknown, as that of a later version.
    """
    made = dict(raw)
    found = made.pop(KEY, 1 if of_run else FORMAT)
    if found not in (1, FORMAT) or isinstance(found, bool):
        raise UserError(
            f"{source} has the format {str(found)[:40]!r}, and this version reads 1 and {FORMAT}: it was written by a "
            "later version of sfumato, or its first lines were changed"
        )
    if found == FORMAT:
        return made
    if "inputs" in made:
        made["conditioning_metadata"] = made.pop("inputs")
    converted: dict[str, Any] = _converted(made)
    return converted


def _converted(value: Any) -> Any:
    """The value with the schedules of format 1 under their current names."""
    if not isinstance(value, dict):
        return value
    made = {key: _converted(item) for key, item in value.items()}
    schedule = made.get("schedule")
    if isinstance(schedule, dict):
        kind = schedule.get("kind")
        made["schedule"] = {**schedule, "kind": _SCHEDULES.get(kind, kind) if isinstance(kind, str) else kind}
    return made
