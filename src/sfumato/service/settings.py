"""The settings of the service, each declared once; `sfumato serve` and the studio read them. Imports nothing heavy."""

import re
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import UserError
from sfumato.pipeline.options import Range, check_options, option

MEBIBYTE = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_ORIGIN = re.compile(r"https?://[\w.-]+(:\d+)?|https?://\[[\da-fA-F:]+\](:\d+)?")
_HOST = re.compile(r"[\w.-]+|[\da-fA-F:]+")


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """How a service is reached, what it may read, and its bounds. Raises UserError for values that do not fit."""

    models: tuple[Path, ...] = option((), "what to sample", "Model folders, folders of runs, zoo:toy or zoo:emoji.")
    host: str = option(
        "127.0.0.1", "access", "The address to listen on; one that other machines reach requires a token."
    )
    port: int = option(8188, "access", "The port to listen on; 0 takes a free one.", Range(0, 65535, whole=True))
    token: str | None = option(None, "access", "A secret that every request must carry: Authorization: Bearer TOKEN.")
    allow_host: tuple[str, ...] = option(
        (), "access", "Another name of this machine that a request may address, such as that of a proxy."
    )
    allow_origin: tuple[str, ...] = option(
        (), "access", "The origin of a web page, such as http://localhost:3000, whose scripts may call the service."
    )
    folders: tuple[Path, ...] = option(
        (), "access", "Folders whose images a request may name as file:PATH; nothing outside them is read."
    )
    out: Path = option(Path("service-results"), "output", "The folder for results and uploads.")
    out_size: int = option(
        1024, "limits", "MiB of results and uploads that are kept; the oldest are removed.", Range(1, 10**8, whole=True)
    )
    batch: int = option(
        8, "machine", "Images computed at once, of one request or of several.", Range(1, 256, whole=True)
    )
    lanes: int = option(
        0,
        "machine",
        "Fill every batch up to this many images with copies: allows larger batches where the device's rounding "
        "depends on the batch size; 0: only batch sizes that change no bit of an image.",
        Range(0, 256, whole=True),
    )
    memory: int = option(
        4096,
        "limits",
        "MiB of weights in memory; the least recently used models are unloaded.",
        Range(1, 10**7, whole=True),
    )
    queue: int = option(
        64, "limits", "Jobs that may wait; further ones are refused (429).", Range(1, 10**5, whole=True)
    )
    count: int = option(64, "limits", "Images of one job at most.", Range(1, 10**5, whole=True))
    pixels: int = option(1 << 20, "limits", "Pixels of an image at most.", Range(1, 10**9, whole=True))
    steps: int = option(1000, "limits", "Sampling steps of a job at most.", Range(1, 10_000, whole=True))
    body: int = option(32, "limits", "MiB of a request's body at most.", Range(1, 4096, whole=True))
    seconds: int = option(600, "limits", "Seconds that a job may run.", Range(1, 10**6, whole=True))

    def __post_init__(self) -> None:
        check_options(self)
        if self.host not in LOOPBACK and not self.token:
            raise UserError(
                f"host {self.host!r} can be reached from other machines: give a token (--token, or the variable "
                "SFUMATO_TOKEN) that requests must carry, or leave the host out"
            )
        for origin in self.allow_origin:
            if not _ORIGIN.fullmatch(origin):
                raise UserError(
                    f"allow origin {origin!r} is not an origin: give scheme, host and port, such as http://localhost:3000"
                )
        for host in self.allow_host:
            if not _HOST.fullmatch(host):
                raise UserError(f"allow host {host!r} is not a host name: give one without port, such as my-proxy")

    @property
    def body_bytes(self) -> int:
        """Bytes of a request's body at most."""
        return self.body * MEBIBYTE

    @property
    def out_bytes(self) -> int:
        """Bytes of results and uploads at most."""
        return self.out_size * MEBIBYTE
