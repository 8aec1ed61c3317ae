"""Small colour profiles built from scratch, of ICC version 2."""

import struct
from collections.abc import Mapping

import numpy as np

PROPHOTO = np.array([[0.7977, 0.1352, 0.0313], [0.2880, 0.7119, 0.0001], [0.0, 0.0, 0.8249]])
"""Columns are the primaries of ProPhoto RGB in XYZ at D50."""
SRGB = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
WHITE = (0.9642, 1.0, 0.8249)


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(_number(v) for v in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _described(name: str) -> bytes:
    text = name.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78


def profile(space: bytes, connection: bytes, tags: Mapping[bytes, bytes], name: str, kind: bytes = b"mntr") -> bytes:
    """A profile with these tags."""
    every = {b"desc": _described(name), b"wtpt": _xyz(WHITE), b"cprt": b"text\0\0\0\0none\0", **tags}
    offset, table, body = 132 + 12 * len(every), b"", b""
    for tag, data in every.items():
        data += b"\0" * (-len(data) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"test", 0x02400000, kind, space, connection)
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += b"".join(_number(v) for v in WHITE)
    head = head.ljust(128, b"\0")
    whole = head + struct.pack(">I", len(every)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def rgb(matrix: np.ndarray, gamma: float, name: str) -> bytes:
    """A matrix and a gamma."""
    columns = {tag: _xyz(tuple(matrix[:, i])) for i, tag in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    return profile(b"RGB ", b"XYZ ", {**columns, **{tag: _curve(gamma) for tag in (b"rTRC", b"gTRC", b"bTRC")}}, name)


def grey(gamma: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)}, "grey")


def cmyk() -> bytes:
    """Ink lets through its complement, exactly: a table of two points an axis into Lab."""
    corners = []
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        linear = np.array([1 - c, 1 - m, 1 - y], float) * (1 - k)
        x = SRGB @ linear / WHITE
        f = np.where(x > 216 / 24389, np.cbrt(x), (24389 / 27 * x + 16) / 116)
        lab = (116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2]))
        corners += [round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)]
    ramp = bytes(range(256))
    identity = b"".join(_number(float(i == j)) for i in range(3) for j in range(3))
    table = (
        b"mft1\0\0\0\0"
        + bytes([4, 3, 2, 0])
        + identity
        + ramp * 4
        + np.clip(corners, 0, 255).astype(np.uint8).tobytes()
        + ramp * 3
    )
    return profile(b"CMYK", b"Lab ", {b"A2B0": table}, "press", b"prtr")
