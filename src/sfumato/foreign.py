"""Shared by readers of foreign files: regular files only, bounded representations of values, one guard for errors."""

import contextlib
import errno
import re
import reprlib
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sfumato.errors import UserError

MAX_SHOWN = 200
"""Most characters of a foreign value in a message."""
_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
"""Errors of the machine rather than of a file's content; the command line has a sentence for each."""
_UNPRINTABLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
_BOUNDED = reprlib.Repr()
_BOUNDED.maxlevel, _BOUNDED.maxstring, _BOUNDED.maxother, _BOUNDED.maxlong = 3, 120, 120, 40
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def short(value: Any) -> str:
    """The representation of a foreign value, bounded in depth and length (lists shared a hundred times over, too)."""
    try:
        text = _BOUNDED.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no decimal form
        text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def printable(text: str) -> str:
    """`text` with control characters, terminal escapes and invisible marks written as escapes; newlines are kept."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def check_regular(path: Path) -> None:
    """Raises UserError unless `path` is a regular file: reading a pipe, a device or a link to one might never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        link = path.is_symlink()
        raise UserError(f"{str(path)!r} {'is a link to nothing' if link else 'does not exist'}") from None
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a NUL in it
        raise UserError(f"{str(path)!r} cannot be opened: {_reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"{str(path)!r} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise UserError(f"{str(path)!r} is not a regular file but a pipe, a socket or a device; it is not opened")


@contextlib.contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Turns any exception from malformed content of a foreign file within the block into one UserError.

    It complements specific checks, which name the value and the way out; this one names the file and the error.
    Errors of the machine (full disk, no permission) are not converted.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno in _MACHINE:
            raise
        raise UserError(f"{str(path)!r} cannot be read: {_reason(error)}") from error
    except _MALFORMED as error:
        raise UserError(
            f"{str(path)!r} cannot be read: something in it is malformed ({type(error).__name__}: {_reason(error)})"
        ) from error


def _reason(error: BaseException) -> str:
    """The first line of an error's text, bounded."""
    text = getattr(error, "strerror", None) or (str(error).strip().splitlines() or ["no details"])[0]
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
