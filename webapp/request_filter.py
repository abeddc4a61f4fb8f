"""What stands between the page of app.py and whoever asks for it: Gradio leaves more doors open.

Standard library only: an ASGI application around another, and a lock on the process.
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
# The browser itself refuses what would leave this machine. Gradio's script is inline and makes
# functions of its templates.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",  # a browser's cache outlives the page, and pictures pass through
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_READ = frozenset({"GET", "HEAD"})
_PAGES = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json"})
_PARTS = ("/assets/", "/static/")
_API = "/gradio_api/"
_FILE = _API + "file="
_ASKED = frozenset({"queue/data", "upload_progress", "startup-events"})
_HEARTBEAT = _API + "heartbeat/"
_SENT = frozenset({"queue/join", "upload", "cancel", "reset"})
_NAME_EVENTS = frozenset({"socket.getaddrinfo", "socket.gethostbyname"})
_REVERSE_EVENTS = frozenset({"socket.gethostbyaddr", "socket.getnameinfo"})
_ADDRESS_EVENTS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})


class Guard:
    """A site that answers its own pages what they ask for, and nothing else.

    Args:
        site: The application behind it.
        folder: The only folder whose files are handed out.
        hosts: The names under which it may be asked, so that no foreign page reaches it by a name
            of its own; None: any.
    """

    def __init__(self, site: Site, folder: Path, hosts: frozenset[str] | None) -> None:
        self._site, self._folder, self._hosts = site, folder.resolve(), hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._site(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message.get("headers", []) if not _is_ours(pair[0])]
                ours = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": kept + ours}
            await send(message)

        if status := self._refuse(scope):
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send_guarded(
                {"type": "http.response.start", "status": status, "headers": headers}
            )
            await send_guarded({"type": "http.response.body", "body": b"refused\n"})
            return
        await self._site(scope, receive, send_guarded)

    def _refuse(self, scope: Message) -> int:
        """The status with which a request is refused; 0: it is not."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if self._hosts is not None and strip_port(host) not in self._hosts:
            return 403
        if origin is not None and origin != f"http://{host}":
            return 403  # another site's page, in the browser of whoever has this one open
        return 0 if self._knows(scope["method"], scope["path"]) else 404

    def _knows(self, method: str, path: str) -> bool:
        if method == "POST":
            return path.removeprefix(_API) in _SENT
        if method not in _READ:
            return False
        if path.startswith(_FILE) and "\0" not in path:
            # a file of the page, never an address that the server would fetch
            return Path(path.removeprefix(_FILE)).resolve().is_relative_to(self._folder)
        is_page = path in _PAGES or path.startswith((*_PARTS, _HEARTBEAT))
        return is_page or path.removeprefix(_API) in _ASKED


def _is_ours(name: bytes) -> bool:
    return name.decode("latin-1").lower() in HEADERS


def strip_port(host: str) -> str:
    """`127.0.0.1` of `127.0.0.1:7860`, `::1` of `[::1]:7860`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def refuse_connections() -> None:
    """From now on no Python code of this process connects to anything but this machine.

    Processes that it starts and sockets of C libraries are not seen. There is no way back: it is
    for a process that does nothing else.
    """
    sys.addaudithook(_refuse_connection)


def _refuse_connection(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _NAME_EVENTS:
        host = arguments[0]
        # a plain address asks nobody, so that sockets may be opened at it
        if host and not is_local(host) and not _is_address(host):
            raise PermissionError("this program looks up no names outside this machine")
    elif event in _REVERSE_EVENTS:
        # an address, alone or with its port: others are asked for its name
        host = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        if not is_local(host):
            raise PermissionError("this program looks up no names outside this machine")
    elif event in _ADDRESS_EVENTS:
        address = arguments[1]
        if isinstance(address, tuple) and not is_local(address[0]):
            raise PermissionError("this program connects to nothing outside this machine")


def is_local(host: str | bytes) -> bool:
    """Whether a host is this machine itself."""
    name = host.decode("latin-1") if isinstance(host, bytes) else host
    return name in LOCAL_HOSTS or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(host: str | bytes) -> bool:
    try:
        ipaddress.ip_address(host.decode("latin-1") if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True
