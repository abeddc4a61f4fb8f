"""Restrict the page to the requests that it needs, and its process to this machine.

An ASGI application around Gradio's, which answers more requests than the page needs, and an audit
hook. Standard library only.
"""

import ipaddress
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Site = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    # Gradio's script is inline and builds functions from its templates
    b"content-security-policy": (
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    b"cache-control": b"no-store",  # a browser cache would keep images after the page has ended
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}
_PAGES = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"})
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_API = "/gradio_api/"
_FILE = _API + "file="
_API_GET = frozenset({"queue/data", "upload_progress", "startup-events"})
_API_POST = frozenset({"queue/join", "upload", "cancel", "reset"})
_FORWARD_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
_LOOKUP_EVENTS = _FORWARD_EVENTS | {"socket.gethostbyaddr", "socket.getnameinfo"}
_ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


class RequestFilter:
    """Passes the requests of the page to an ASGI application and refuses all others.

    Args:
        site: The application.
        folder: The only folder whose files are served.
        hosts: Allowed Host headers, against DNS rebinding; None: any.
    """

    def __init__(self, site: Site, folder: Path, hosts: frozenset[str] | None) -> None:
        self._site, self._folder, self._hosts = site, folder.resolve(), hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer or refuse a request; websockets are ignored."""
        if scope["type"] == "lifespan":
            await self._site(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                others = [pair for pair in headers if pair[0].lower() not in HEADERS]
                message = {**message, "headers": [*others, *HEADERS.items()]}
            await send(message)

        if status := self._refuse(scope):
            content_type = [(b"content-type", b"text/plain; charset=utf-8")]
            start = {"type": "http.response.start", "status": status, "headers": content_type}
            await send_with_headers(start)
            await send_with_headers({"type": "http.response.body", "body": b"refused\n"})
            return
        await self._site(scope, receive, send_with_headers)

    def _refuse(self, scope: Message) -> int:
        """Return the status of a refused request, 0 for an allowed one."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._hosts is not None and _strip_port(host) not in self._hosts:
            return 403
        if origin is not None and origin != f"http://{host}":
            return 403  # a page of another site in the same browser
        return 0 if self._is_known(scope["method"], scope["path"]) else 404

    def _is_known(self, method: str, path: str) -> bool:
        if method == "POST":
            return path.removeprefix(_API) in _API_POST
        if method not in {"GET", "HEAD"}:
            return False
        if path.startswith(_FILE) and "\0" not in path:
            # a file of the folder, never a URL that the server would fetch
            return Path(path.removeprefix(_FILE)).resolve().is_relative_to(self._folder)
        is_page = path in _PAGES or path.startswith(_FOLDERS)
        return is_page or path.removeprefix(_API) in _API_GET


def _strip_port(host: str) -> str:
    """Return `127.0.0.1` for `127.0.0.1:7860`, `::1` for `[::1]:7860`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def refuse_connections() -> None:
    """Refuse all later connections of this process's Python code to other machines.

    Child processes and sockets of C libraries are not covered. It cannot be undone.
    """
    sys.addaudithook(_refuse_connection)


def _refuse_connection(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _LOOKUP_EVENTS:
        host = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        # sockets are opened with numeric addresses, which need no name server
        is_numeric = event in _FORWARD_EVENTS and (not host or _is_address(host))
        if not is_numeric and not is_local(host):
            raise PermissionError("this program must not look up other machines")
    elif event in _ADDRESS_EVENTS:
        address = arguments[1]
        if isinstance(address, tuple) and not is_local(address[0]):
            raise PermissionError("this program must not connect to other machines")


def is_local(host: str | bytes) -> bool:
    """Return whether a host is this machine."""
    name = host.decode("latin-1") if isinstance(host, bytes) else host
    return name in LOCAL_HOSTS or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(host: str | bytes) -> bool:
    try:
        ipaddress.ip_address(host.decode("latin-1") if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True
