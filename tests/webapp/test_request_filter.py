"""What stands before the page: hosts, origins, paths, headers, and no way out of the process."""

import asyncio
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import app
from helper import PROJECT_DIR, UserError
from tests.support.builders import Run
from webapp import request_filter

LOCAL = "127.0.0.1:7860"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """A site that grants everything, with a header that the guard has its own of."""
    headers = [(b"Cache-Control", b"public"), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"granted"})


def ask(
    folder: Path,
    path: str,
    method: str = "GET",
    host: str = LOCAL,
    origin: str | None = None,
    hosts: frozenset[str] | None = request_filter.LOCAL_HOSTS,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(request_filter.Guard(answer, folder, hosts)(scope, None, send))  # type: ignore[arg-type]
    start, body = sent
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], found, body["body"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/assets/index.js"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/heartbeat/abc"),
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/queue/join"),
    ],
)
def test_what_the_page_asks_for_is_granted(tmp_path: Path, method: str, path: str) -> None:
    assert ask(tmp_path, path, method)[0] == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/docs"),
        ("GET", "/monitoring"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/proxy=http://example.com/"),
        ("GET", "/gradio_api/file=http://example.com/"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/gradio_api/file=\0"),
        ("GET", "/gradio_api/upload"),
        ("POST", "/"),
        ("POST", "/gradio_api/run/predict"),
        ("PUT", "/gradio_api/upload"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, method: str, path: str) -> None:
    status, headers, body = ask(tmp_path, path, method)
    assert (status, body) == (404, b"refused\n")
    assert "default-src 'self'" in headers["content-security-policy"]


def test_files_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "a").mkdir(parents=True)
    (folder / "out").symlink_to("/etc")
    for name, status in (("a/x.csv", 200), ("../secret", 404), ("out/passwd", 404), ("", 200)):
        assert ask(folder, f"/gradio_api/file={folder}/{name}")[0] == status, name


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost:7860", 200),
        ("[::1]:7860", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:7860", 403),
        ("", 403),
    ],
)
def test_only_this_machine_s_names_are_known(tmp_path: Path, host: str, status: int) -> None:
    assert ask(tmp_path, "/", host=host)[0] == status


def test_a_page_for_others_is_known_by_any_name(tmp_path: Path) -> None:
    assert ask(tmp_path, "/", host="ward-7.example:7860", hosts=None)[0] == 200


def test_pages_of_other_sites_are_refused(tmp_path: Path) -> None:
    for origin, status in ((f"http://{LOCAL}", 200), ("http://evil.example", 403), ("null", 403)):
        assert ask(tmp_path, "/gradio_api/upload", "POST", origin=origin)[0] == status
        assert ask(tmp_path, "/gradio_api/upload", "POST", origin=origin, hosts=None)[0] == status


def test_headers_forbid_what_is_outside_and_what_is_kept(tmp_path: Path) -> None:
    headers = ask(tmp_path, "/")[1]
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http:" not in policy
    assert "https:" not in policy
    assert "*" not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-own"] == "1"


def test_the_process_reaches_nothing_outside_this_machine() -> None:
    program = """
import socket, threading, urllib.request
import guard
guard.refuse_connections()
door = socket.create_server(("127.0.0.1", 0))
socket.create_connection(door.getsockname()).close()
socket.create_server(("0.0.0.0", 0)).close()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.sendmsg([b"x"], [], 0, door.getsockname())
datagrams.connect(door.getsockname())
datagrams.sendmsg([b"x"])
socket.gethostbyaddr("127.0.0.1")
socket.getnameinfo(door.getsockname(), 0)
for attempt in (
    lambda: socket.create_connection(("192.0.2.1", 80), 1),
    lambda: socket.create_connection(("name.example", 80), 1),
    lambda: datagrams.sendto(b"x", ("192.0.2.1", 53)),
    lambda: datagrams.sendmsg([b"x"], [], 0, ("192.0.2.1", 53)),
    lambda: socket.gethostbyname("name.example"),
    lambda: socket.gethostbyaddr("192.0.2.1"),
    lambda: socket.gethostbyaddr("name.example"),
    lambda: socket.getnameinfo(("192.0.2.1", 80), 0),
    lambda: urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://192.0.2.1/"),
):
    try:
        attempt()
    except OSError as error:
        assert "outside this machine" in str(error), error
    else:
        raise SystemExit("it went out")
print("held")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("held\n", "")


def test_the_page_is_offered_by_a_process_that_reaches_nothing(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    interface = types.SimpleNamespace(
        build_site=lambda *parts: answer, run_site=lambda *parts: done.append("offered")
    )
    monkeypatch.setattr(app, "import_gradio_page", lambda: interface)
    monkeypatch.setattr(request_filter, "refuse_connections", lambda: done.append("held"))
    monkeypatch.setattr(app, "open_socket", lambda host, port: socket.socket())
    assert app.main(["session/first/best.pt", "--device", "cpu"]) == 0
    assert done == ["held", "offered"]


def test_the_door_sends_at_once_and_is_there_once() -> None:
    with app.open_socket("127.0.0.1", 0) as door:
        # asyncio lets small answers wait on any other, and Gradio loses events meanwhile
        assert door.proto == socket.IPPROTO_TCP
        port = door.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port} cannot be used \(Address already"):
            app.open_socket("127.0.0.1", port)
