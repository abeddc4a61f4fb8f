"""Checks of every request before the application sees it, and headers of every answer.

An ASGI middleware: allowed Host and Origin, token, size and duration of the upload, number of
requests at once.
"""

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
CLOSED = ("/predict", "/heatmap", "/model", "/training/")  # need the token; the rest holds no data
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
HEADERS = {
    "cache-control": "no-store",  # a browser cache would keep slices after the page has ended
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all together."""

    body_mib: int = 512
    pause_s: float = 20.0  # longest pause of a sender
    upload_s: float = 600.0
    waiting: int = 64  # requests with a body at once


class Guard:
    """Refuses requests that the page does not make, and those beyond the limits.

    Args:
        app: The application.
        hosts: Allowed names in the Host header, against DNS rebinding; None: any.
        token: Secret that the closed routes need; None: none.
        limits: Of one request, and of all together.
    """

    def __init__(
        self,
        app: App,
        hosts: frozenset[str] | None = LOCAL_HOSTS,
        token: str | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self._app, self._hosts, self._token, self._limits = app, hosts, token, limits
        self._n_active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one line of JSON."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        has_body, status = scope["method"] == "POST", 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                policy = DOCS_POLICY if scope["path"] == "/docs" else POLICY
                added = {**HEADERS, "content-security-policy": policy}
                pairs = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message.get("headers", []), *pairs]}
            await send(message)

        try:
            self._check(scope)
            if has_body and self._n_active >= self._limits.waiting:
                raise HTTPException(503, "too many requests at once; try again in a moment")
        except HTTPException as error:
            await _answer(send_with_headers, error)
            return
        self._n_active += has_body
        try:
            await self._app(scope, self._limit(receive) if has_body else receive, send_with_headers)
        finally:
            self._n_active -= has_body

    def _check(self, scope: Message) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._hosts is not None and _strip_port(host) not in self._hosts:
            raise HTTPException(403, "unknown host; open the address that app.py printed")
        if origin is not None and origin.partition("://")[2] != host:
            raise HTTPException(403, "sent by a page of another site")
        if self._token is not None and scope["path"].startswith(CLOSED):
            given = headers.get(b"authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                raise HTTPException(401, "wrong or missing token; open the link with the token")
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.body_mib * 2**20:
            raise self._too_large()

    def _limit(self, receive: Receive) -> Receive:
        """Return a `receive` that stops a body that is too large or sent too slowly."""
        limits, n_bytes, is_complete = self._limits, 0, False
        end_s = time.monotonic() + limits.upload_s

        async def receive_limited() -> Message:
            nonlocal n_bytes, is_complete
            if is_complete:
                return await receive()
            left_s = min(limits.pause_s, end_s - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), left_s)
            except TimeoutError:
                raise HTTPException(408, "the upload is too slow; send fewer files") from None
            n_bytes += len(message.get("body", b""))
            is_complete = not message.get("more_body", False)
            if n_bytes > limits.body_mib * 2**20:
                raise self._too_large()
            return message

        return receive_limited

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"over {self._limits.body_mib} MiB; send fewer files at once")


def is_local(host: str) -> bool:
    """Return whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _strip_port(host: str) -> str:
    """Return the name of a Host header, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _answer(send: Send, error: HTTPException) -> None:
    headers = [(b"content-type", b"application/json")]
    if error.status_code == 503:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": error.status_code, "headers": headers})
    body = json.dumps({"error": error.detail}).encode()
    await send({"type": "http.response.body", "body": body})
