"""Who may reach the studio: whoever opened the address that it printed, and no other page or program of this machine.

The address carries a token once; it becomes a cookie that scripts cannot read and that other sites' pages do not send.
"""

import hmac
import os
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfumato.errors import UserError

TOKEN_FILE = ".token"
OPEN = ("/health", "/ready")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""The page loads nothing from elsewhere, runs no script but its own, and is shown within no other page."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
REFUSED = "open the address that `sfumato studio` printed: it lets this browser in"


def kept_token(folder: Path) -> str:
    """The studio's token, made once and readable by its owner only, so that an open page outlives a restart."""
    path = folder / TOKEN_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "r+", encoding="ascii", errors="replace") as stream:
            known = stream.read().strip()
            if len(known) >= 20:
                return known
            token = secrets.token_urlsafe(24)
            stream.seek(0)
            stream.truncate()
            stream.write(token)
            return token
    except OSError as error:
        raise UserError(
            f"{str(folder)!r} cannot be written to: {error.strerror or error}; give another --out"
        ) from None


class Guard:
    """Lets a request through that carries the token as cookie or as bearer; adds the headers to every answer."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/static/"):
                    headers["Cache-Control"] = "no-cache"
            await send(message)

        answer = self._refusal(scope)
        await (self._app if answer is None else answer)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer of a request that is not let through: the way in with a cookie, or 401."""
        headers = Headers(scope=scope)
        if scope["path"] in OPEN or self._allowed(headers):
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._same(given):
            answer = RedirectResponse("/", status_code=303)
            answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/", max_age=30 * 86400)
            return answer
        if scope["path"] == "/":
            return PlainTextResponse(REFUSED.capitalize() + ".\n", status_code=401)
        refusal = {"message": REFUSED, "type": "invalid_request_error", "param": None, "code": "token"}
        return JSONResponse({"error": refusal}, status_code=401)

    def _allowed(self, headers: Headers) -> bool:
        bearer = headers.get("authorization", "")
        if bearer.startswith("Bearer ") and self._same(bearer.removeprefix("Bearer ")):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self._cookie in cookies and self._same(cookies[self._cookie].value)

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())
