"""The process of the page: its socket, its start and end, its private folder, slow connections."""

import http.client
import io
import signal
import socket
import stat
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import app
from helper import UserError
from tests.support.builders import Capture, Patch, Run
from tests.support.page_server import ENDED, Page, end, start
from webapp import server

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
BOUNDARY = "----x"


def post(port: int, path: str, name: str, content: bytes) -> tuple[int, bytes]:
    """Post a file and return status and body of the answer."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    )
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    connection.request("POST", path, body, kind)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_many_clients_get_their_own_answers(served: Page, phantom: Path) -> None:
    content = phantom.read_bytes()

    def ask(number: int) -> bool:
        status, body = post(served.port, "/predict", f"{number}.png", content)
        return status == 200 and f'"{number}.png"'.encode() in body

    with ThreadPoolExecutor(20) as pool:
        assert all(pool.map(ask, range(60)))
    (folder,) = served.temporary.iterdir()
    assert list(folder.iterdir()) == []  # no upload outlives its request
    if sys.platform != "win32":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_client_that_leaves_leaves_nothing_behind(served: Page, phantom: Path) -> None:
    about = 'Content-Disposition: form-data; name="files"; filename="a.png"'
    part = f"--{BOUNDARY}\r\n{about}\r\n\r\n".encode() + phantom.read_bytes() + b"\r\n"
    body = part * 200 + f"--{BOUNDARY}--\r\n".encode()
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    headers = {"content-type": kind, "accept": "application/x-ndjson"}
    connection.request("POST", "/predict", body, headers)
    assert b"a.png" in connection.getresponse().readline()
    (folder,) = served.temporary.iterdir()
    assert list(folder.iterdir()) != []
    connection.close()
    end_s = time.monotonic() + 30
    while list(folder.iterdir()):
        assert time.monotonic() < end_s
        time.sleep(0.1)
    assert post(served.port, "/predict", "b.png", phantom.read_bytes())[0] == 200


def test_it_listens_on_one_address(served: Page) -> None:
    with pytest.raises(ConnectionRefusedError):  # another loopback address
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


def test_a_connection_without_a_request_is_closed(served: Page) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127")
        started_s = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - started_s > server.HEADER_S / 2


posix_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@posix_signals
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_it_and_delete_the_uploads(
    first_run: Run, tmp_path: Path, phantom: Path, name: str
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    page = start(first_run.root, folder)
    assert "Research use only" in "\n".join(page.output)
    sender = socket.create_connection(("127.0.0.1", page.port))  # an upload that never ends
    sender.sendall(
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    time.sleep(0.5)
    page.process.send_signal(getattr(signal, name))
    assert page.process.wait(30) == 0
    assert end(page) == ENDED
    assert list(folder.iterdir()) == []
    sender.close()


@posix_signals
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_signals_end_it_while_it_unpacks(
    first_run: Run, tmp_path: Path, phantom: Path, name: str
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(1_500):
            archive.writestr(f"{number}.png", phantom.read_bytes())
    page = start(first_run.root, folder)
    pool = ThreadPoolExecutor(1)
    pool.submit(post, page.port, "/predict", "all.zip", packed.getvalue())  # without an answer
    deadline_s = time.monotonic() + 30
    while len(list(folder.rglob("*.png"))) < 20:
        assert time.monotonic() < deadline_s
    page.process.send_signal(getattr(signal, name))
    assert page.process.wait(60) == 0
    assert end(page) == ENDED
    assert list(folder.iterdir()) == []
    pool.shutdown()


def test_an_address_of_others_needs_a_token(first_run: Run, capsys: Capture) -> None:
    best = str(first_run.root / "session/first/best.pt")
    assert app.main([best, "--host", "0.0.0.0"]) == 2
    assert "could open the page; add --token" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app.parse_args([best, "--token", "short"])
    assert "--token: 'short' does not have the form" in capsys.readouterr().err


def test_a_token_opens_the_page(first_run: Run, tmp_path: Path, phantom: Path) -> None:
    token = "0123456789abcdef"
    page = start(first_run.root, tmp_path, "--host", "0.0.0.0", "--token", token)
    link = f"open http://{socket.gethostname()}:{page.port}/#token={token}"
    assert page.output[-1].startswith(link)
    assert "put a proxy with TLS before the page" in "\n".join(page.output)
    assert post(page.port, "/predict", "a.png", phantom.read_bytes())[0] == 401
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request("GET", "/model", headers={"authorization": f"Bearer {token}"})
    assert connection.getresponse().status == 200
    assert end(page) == ENDED


@pytest.mark.parametrize(
    ("host", "name"),
    [
        *(("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("ward.example", "ward.example")),
        *(("0.0.0.0", socket.gethostname()), ("::", socket.gethostname())),
    ],
)
def test_the_printed_link_has_a_name_that_a_browser_finds(host: str, name: str) -> None:
    assert server.find_name(host) == name


def test_a_port_in_use_is_refused() -> None:
    with server.open_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match="name another --port or --host"):
            server.open_socket("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot be used"):
        server.open_socket("203.0.113.1", 7860)


@pytest.mark.parametrize("name", ["uvicorn", "swagger_ui_bundle", "webapp.guard"])
def test_missing_packages_are_named(monkeypatch: Patch, first_run: Run, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    config = app.parse_args([str(first_run.root / "session/first/best.pt")])
    with pytest.raises(UserError, match=r"pip install -r requirements-app\.txt"):
        app.serve(config)


def test_the_folder_is_deleted_after_an_error() -> None:
    def fail() -> None:
        with server.private_folder() as folder:
            folders.append(folder)
            (folder / "image").write_bytes(b"x")
            raise ValueError("x")

    folders: list[Path] = []
    with pytest.raises(ValueError, match="x"):
        fail()
    assert not folders[0].exists()
