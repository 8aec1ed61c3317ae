"""Reading text files of users: captions, metadata, prompts, lists of names, boxes."""

import codecs
import re
import stat
import unicodedata
from pathlib import Path

from sfumato.errors import UserError

LARGEST_TEXT = 2**30
"""Bytes of the largest metadata or annotation file that is read."""
LARGEST_CAPTION = 2**20
"""Bytes of the largest caption file, prompts file or list of names that is read."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark begins alike: no text begins with a NUL
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = (("utf-32-le", "utf-32-be"), ("utf-16-le", "utf-16-be"))
_NO_TEXT = frozenset({"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem"})
_BEFORE_UTF8 = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")
"""Encodings whose bytes may be valid UTF-8: once declared, they are tried first."""
_LOST = "\ufffd"
_NEVER = re.compile("[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ud800-\udfff]")
"""Control characters other than blanks and line ends, lost letters, halves of pairs."""
_SHOWN = 60
_PART = 2**20


def known_encoding(name: str) -> str:
    """The name Python knows a text encoding by; ValueError for anything else."""
    try:
        found = codecs.lookup(name)
        text = b"a".decode(found.name, "ignore")  # raises LookupError for codecs that make no text, such as hex
    except (LookupError, ValueError, UnicodeError):
        text, found = None, None
    if found is None or text is None or found.name.replace("-", "_") in _NO_TEXT:
        raise ValueError(f"encoding {name!r} is unknown: give one such as utf-8, cp1252, latin-1, shift-jis or gb18030")
    return found.name


def read_text(
    path: Path,
    encoding: str | None = None,
    largest: int = LARGEST_TEXT,
    way_out: str = "save it as UTF-8, or name its encoding, such as data.encoding=cp1252",
    name: str | None = None,
) -> str:
    """The file's text without a byte-order mark; line ends are those of the file.

    Decoded by its byte-order mark, else as UTF-8, else as UTF-16 or UTF-32 where only one byte order makes sense of it,
    else by the declared `encoding`. Nothing is replaced: UserError for bytes that fit none of them, for NUL and U+FFFD,
    for a file larger than `largest` bytes and for anything that is not a regular file. `name` is used in messages.
    """
    name = name or str(path)
    return decoded_text(_bytes_of(path, largest, name), name, encoding, way_out)


def decoded_text(
    data: bytes,
    name: str,
    encoding: str | None = None,
    way_out: str = "save it as UTF-8, or name its encoding, such as data.encoding=cp1252",
) -> str:
    """As `read_text`, of the bytes of a text named `name`."""
    for mark, form in _BOMS:
        if data.startswith(mark):
            text = _decoded(name, data[len(mark) :], form, len(mark), "save it again as UTF-8")
            break
    else:
        text = _unmarked(name, data, encoding, way_out)
    check_characters(text, name)
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a text, ended by any of LF, CR LF and CR; other separators may stand within a line."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def check_characters(text: str, where: str) -> None:
    """Raises UserError for characters that no text should hold: controls, half of a surrogate pair, U+FFFD.

    Controls are what text becomes that is read in another encoding than its own: UTF-16, ISO 2022, cp1252 as latin-1.
    """
    found = _NEVER.search(text)
    if found is None:
        return
    place, character = found.start(), found.group()
    line = text.count("\n", 0, place) + 1
    if character == _LOST:
        problem = "U+FFFD, which replaces letters that an earlier conversion lost: restore the text"
    elif character == "\0":
        problem = "a NUL character, which no text contains: save it as UTF-8 text"
    elif character < "\xa0":
        problem = (
            f"the control character U+{ord(character):04X}, which no text contains: is it in another encoding? Save it "
            "as UTF-8, or declare data.encoding"
        )
    else:
        problem = f"U+{ord(character):04X}, half of a surrogate pair: write the whole character"
    raise UserError(f"{where} holds, at character {place} (line {line}), {problem}")


def shown(text: str, longest: int = _SHOWN) -> str:
    """A text in quotes for a message: one line, cut after `longest` characters, without control characters."""
    cut = text if len(text) <= longest else text[:longest].rstrip() + "…"
    return repr(cut)


def _bytes_of(path: Path, largest: int, name: str) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{name} is not a regular file: give a text file")
        data = bytearray()
        with path.open("rb") as file:  # in parts: reading `largest` bytes at once would allocate them
            while len(data) <= largest and (part := file.read(min(_PART, largest + 1 - len(data)))):
                data += part
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None
    if len(data) > largest:
        raise UserError(f"{name} is larger than {largest:,} bytes, the most that is read as such a text: split it")
    return bytes(data)


def _unmarked(name: str, data: bytes, encoding: str | None, way_out: str) -> str:
    """The text of a file without a byte-order mark."""
    declared = None if encoding is None else known_encoding(encoding)
    if declared is not None and declared.replace("_", "-").startswith(_BEFORE_UTF8):
        return _decoded(name, data, declared, 0, "declare another data.encoding, or save it as UTF-8")
    try:
        text = data.decode("utf-8")
        reason = f"byte {text.encode().index(0)} is NUL" if "\0" in text else None
    except UnicodeDecodeError as error:
        text, reason = "", f"byte {error.start} is 0x{data[error.start]:02x}"
    if reason is None:
        return text
    wide = None if _only_strays(text) else _wide_text(data)
    if wide is not None:
        return wide
    if declared is not None:
        return _decoded(name, data, declared, 0, "declare another data.encoding, or save it as UTF-8")
    raise UserError(f"{name} is not UTF-8 text, {reason}: {way_out}")


def _only_strays(text: str) -> bool:
    """Whether a text is UTF-8 but for a few NUL characters: read as UTF-16 it would be other letters altogether."""
    count = text.count("\0")
    return 0 < count < len(text) / 4 and _NEVER.search(text.replace("\0", "")) is None


def _decoded(name: str, data: bytes, encoding: str, offset: int, way_out: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise UserError(
            f"{name} is not {encoding} text, byte {error.start + offset} is 0x{byte:02x}: {way_out}"
        ) from None


def _wide_text(data: bytes) -> str | None:
    """UTF-32 or UTF-16 without a mark, if exactly one byte order gives a text with ASCII letters; else None.

    ASCII read in the wrong order gives no ASCII, so text with blanks or line ends is distinguished from its reversal.
    """
    if 0 not in data:
        return None
    for orders in _WIDE:
        readings = [text for order in orders if (text := _plausible(data, order)) is not None]
        if len(readings) == 1:
            return readings[0]
    return None


def _plausible(data: bytes, encoding: str) -> str | None:
    """The text, if it holds ASCII and nothing but assigned characters."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    strange = any(
        unicodedata.category(c) in ("Cn", "Co", "Cs", "Cc") and c not in "\t\n\r\f\v" for c in dict.fromkeys(text)
    )
    return None if strange or not any(" " <= c <= "~" or c == "\n" for c in text) else text
