"""Hosts, origins, paths and headers of the page, and connections of its process."""

import asyncio
import os
import socket
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import app
from helper import UserError
from tests.support.builders import Capture, Patch, Run, expect_refusal, run_python
from webapp import request_filter, server

LOCAL = "127.0.0.1:7860"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Grant every request, with a header that the filter replaces."""
    headers = [(b"Cache-Control", b"public"), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"granted"})


def request(
    folder: Path,
    path: str,
    method: str = "GET",
    host: str = LOCAL,
    origin: str | None = None,
    hosts: frozenset[str] | None = request_filter.LOCAL_HOSTS,
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())]
    headers += [(b"origin", origin.encode())] if origin else []
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    site = request_filter.RequestFilter(answer, folder, hosts)
    asyncio.run(site(scope, None, send))  # type: ignore[arg-type]
    start, body = sent
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], found, body["body"]


def test_requests_of_the_page_are_granted(tmp_path: Path) -> None:
    for path in ("/", "/assets/index.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/abc"):
        assert request(tmp_path, path)[0] == request(tmp_path, path, "HEAD")[0] == 200, path
    assert request(tmp_path, "/gradio_api/queue/join", "POST")[0] == 200


def test_other_requests_are_refused(tmp_path: Path) -> None:
    others = {
        "GET": (
            *("/docs", "/monitoring", "/gradio_api/info", "/gradio_api/openapi.json"),
            *("/gradio_api/runs", "/gradio_api/proxy=http://example.com/", "/gradio_api/upload"),
            *("/gradio_api/file=http://example.com/", "/gradio_api/file=/etc/passwd"),
            "/gradio_api/file=\0",
        ),
        "POST": ("/", "/gradio_api/run/predict"),
        "PUT": ("/gradio_api/upload",),
    }
    for method, paths in others.items():
        for path in paths:
            status, headers, body = request(tmp_path, path, method)
            assert (status, body) == (404, b"refused\n"), path
            assert "default-src 'self'" in headers["content-security-policy"]


def test_only_files_of_the_folder_are_served(tmp_path: Path) -> None:
    folder = tmp_path / "page"
    (folder / "a").mkdir(parents=True)
    (folder / "out").symlink_to("/etc")
    for name, status in (("a/x.csv", 200), ("../secret", 404), ("out/passwd", 404), ("", 200)):
        assert request(folder, f"/gradio_api/file={folder}/{name}")[0] == status, name


def test_other_host_names_are_refused(tmp_path: Path) -> None:
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        assert request(tmp_path, "/", host=host)[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example:7860", ""):
        assert request(tmp_path, "/", host=host)[0] == 403, host
    # --host 0.0.0.0: the page does not know its names
    assert request(tmp_path, "/", host="ward-7.example:7860", hosts=None)[0] == 200


def test_pages_of_other_sites_are_refused(tmp_path: Path) -> None:
    for origin, status in ((f"http://{LOCAL}", 200), ("http://evil.example", 403), ("null", 403)):
        for hosts in (request_filter.LOCAL_HOSTS, None):
            upload = request(tmp_path, "/gradio_api/upload", "POST", origin=origin, hosts=hosts)
            assert upload[0] == status, origin


def test_headers_forbid_other_sites_and_caching(tmp_path: Path) -> None:
    headers = request(tmp_path, "/")[1]
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    for source in ("http:", "https:", "*"):
        assert source not in policy
    assert headers["cache-control"] == "no-store"
    assert headers["x-own"] == "1"


PROGRAM = """
import socket, urllib.request
from webapp import request_filter
request_filter.refuse_connections()
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
socket.create_server(("0.0.0.0", 0)).close()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.sendmsg([b"x"], [], 0, listener.getsockname())
datagrams.connect(listener.getsockname())
datagrams.sendmsg([b"x"])
socket.gethostbyaddr("127.0.0.1")
socket.getnameinfo(listener.getsockname(), 0)
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
        assert "other machines" in str(error), error
    else:
        raise SystemExit("it connected")
print("refused")
"""


@pytest.mark.integration
def test_the_process_connects_to_nothing_outside_this_machine() -> None:
    done = run_python("-c", PROGRAM, timeout=60)
    assert (done.stdout, done.stderr) == ("refused\n", "")


def test_it_serves_without_connections(trained: Run, monkeypatch: Patch, capsys: Capture) -> None:
    calls: list[Any] = []
    page = types.SimpleNamespace(
        build_site=lambda *_: answer, run_site=lambda site, *_: calls.append(site._hosts)
    )
    monkeypatch.setattr(server, "import_gradio_page", lambda: page)
    monkeypatch.setattr(request_filter, "refuse_connections", lambda: calls.append("refuse"))
    monkeypatch.setattr(server, "open_socket", lambda host, port: socket.socket())
    argv = ["session/first/best.pt", "--device", "cpu"]
    assert app.main(argv) == 0
    assert calls == ["refuse", request_filter.LOCAL_HOSTS]
    assert "no password" not in capsys.readouterr().out
    assert app.main([*argv, "--host", "0.0.0.0"]) == 0
    output = capsys.readouterr().out
    assert "no password" in output
    assert "unencrypted" in output
    assert "nowhere" in expect_refusal(capsys, app.main([*argv, "--data", "nowhere"]))
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_the_socket_is_tcp_and_its_port_unique() -> None:
    with server.open_socket("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # else asyncio delays small answers
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port} cannot be used .*--port"):
            server.open_socket("127.0.0.1", port)


def test_a_missing_gradio_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("webapp.gradio_page", raising=False)  # imported by another test
    monkeypatch.setitem(sys.modules, "webapp.gradio_page", None)
    with pytest.raises(UserError, match=r"is not installed; .*requirements-app\.txt"):
        server.import_gradio_page()


def test_the_upload_folder_is_private_and_deleted() -> None:
    with server.private_folder() as folder:
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "image").write_bytes(b"x")
    assert not folder.exists()
