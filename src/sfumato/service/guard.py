"""The checks before every request: the host it addresses, the page it comes from, its token, the size of its body."""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from sfumato.service.errors import RefusedError, error_body
from sfumato.service.metrics import Metrics
from sfumato.service.settings import LOOPBACK, ServiceSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("sfumato.service")
OPEN = ("/health",)
"""Paths that need no token: a process manager asks there."""
DISCARDED = 16 << 20
"""Bytes of a body that is too large which are read before it is refused."""
DISCARDED_SECONDS = 2.0
BODYLESS = ("GET", "HEAD", "OPTIONS")


class TooLarge(Exception):  # noqa: N818 - raised through the framework while it reads a body
    """A body exceeds the bound while it is read."""


@dataclass(frozen=True)
class Guard:
    """Middleware. A page of another site can neither read nor send anything, by address or by name."""

    app: App
    settings: ServiceSettings
    metrics: Metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.metrics)
        try:
            self._check(scope)
            await self.app(scope, _Bounded(receive, self.settings.body_bytes), answer)
        except (RefusedError, TooLarge) as refused:
            refusal = refused if isinstance(refused, RefusedError) else self._too_large()
            if refusal.status == 413:
                await _discard(receive)
            if not answer.begun:
                await _refuse(answer, refusal)
        except ClientDisconnect:
            return  # in the middle of its request: nobody waits for an answer
        except Exception:  # nothing of it leaves the process
            log.exception("a request failed")
            if not answer.begun:
                await _refuse(answer, RefusedError(500, "the service failed to answer; its log has the details"))

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        self._check_host(headers.get("host", ""), scope)
        self._check_origin(headers)
        if self.settings.token and scope["path"] not in OPEN:
            self._check_token(headers.get("authorization", ""))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self.settings.body_bytes:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body has more than the {self.settings.body} MiB allowed here")

    def _check_host(self, host: str, scope: Scope) -> None:
        """A name that somebody else resolves to this machine is refused (DNS rebinding)."""
        if self.settings.token and not self.settings.allow_host:
            return  # a page elsewhere does not have the token
        name = _name_of(host)
        if name not in {*LOOPBACK, self.settings.host, *self.settings.allow_host}:
            raise RefusedError(403, f"the host {host[:80]!r} is not this service's: address it as {self.settings.host}")

    def _check_origin(self, headers: dict[str, str]) -> None:
        """Scripts of a page that the service did not serve itself are refused."""
        origin = headers.get("origin")
        own = {f"{scheme}://{headers.get('host', '')}" for scheme in ("http", "https")}
        if origin is not None and origin not in own and origin not in self.settings.allow_origin:
            raise RefusedError(403, f"pages of {origin[:80]!r} may not call this service: allow it with --allow-origin")
        if (
            origin is None
            and headers.get("sec-fetch-site") == "cross-site"
            and headers.get("sec-fetch-mode") != "navigate"
        ):
            raise RefusedError(403, "pages of another site may not call this service")

    def _check_token(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        expected = (self.settings.token or "").encode()
        if scheme.lower() != "bearer" or not secrets.compare_digest(
            given.strip().encode("latin-1", "replace"), expected
        ):
            raise RefusedError(401, "this service needs its token: send the header Authorization: Bearer TOKEN")


async def _discard(receive: Receive) -> None:
    """Reads a little of what is still being sent: a client that is cut off while it sends never reads the answer."""
    left = DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARDED_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return


@dataclass
class _Bounded:
    """`receive` that stops at the largest body, also of a request that does not announce its length."""

    receive: Receive
    left: int

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            if self.left < 0:
                raise TooLarge
        return message


@dataclass
class _Answer:
    """`send` that knows whether an answer has begun, and adds what every answer has."""

    send: Send
    metrics: Metrics
    begun: bool = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.metrics.answered(message["status"])
            extra: Iterable[tuple[bytes, bytes]] = [
                (b"x-content-type-options", b"nosniff"),
                (b"cross-origin-resource-policy", b"same-origin"),
                (b"referrer-policy", b"no-referrer"),
            ]
            message["headers"] = [*message.get("headers", ()), *extra]
        await self.send(message)


def _name_of(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Send, refused: RefusedError) -> None:
    body = json.dumps(error_body(refused.status, str(refused), refused.param)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
