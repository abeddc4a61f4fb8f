"""Checks of requests: hosts, origins, token, size, speed, number; headers of all answers."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from webapp.guard import LOCAL_HOSTS, Guard, Limits, is_local

LOCAL = "127.0.0.1:7860"
TOKEN = "0123456789abcdef"


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Read the body and answer with its length; errors are answered as the application does."""
    from starlette.exceptions import HTTPException

    status, n_bytes, more = 200, 0, scope["method"] == "POST"
    try:
        while more:
            message = await receive()
            n_bytes += len(message["body"])
            more = message.get("more_body", False)
    except HTTPException as error:
        status = error.status_code
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(n_bytes).encode()})


def request(
    path: str = "/",
    method: str = "GET",
    *,
    parts: list[bytes] | None = None,
    pause_s: float = 0.0,
    guard: Callable[..., Guard] = Guard,
    **headers: str,
) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and body of the answer."""
    sent: list[Any] = []
    remaining = list(parts or [b""])

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        body = remaining.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(remaining)}

    given = {"host": LOCAL, **headers}
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in given.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(guard(answer)(scope, receive, send))
    start, body = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], found, json.loads(body["body"])


def test_other_hosts_and_sites_are_refused() -> None:
    for host in (LOCAL, "localhost:1", "[::1]:1", "LOCALHOST"):
        assert request(host=host)[0] == 200, host
    for host in ("evil.com", "127.0.0.1.evil.com", "", "[::2]:1"):
        status, _, body = request(host=host)
        assert (status, body) == (
            403,
            {"error": "unknown host; open the address that app.py printed"},
        )
    assert request(origin=f"http://{LOCAL}")[0] == 200
    for origin in ("http://evil.com", "null", "http://127.0.0.1:1"):
        status, _, body = request("/predict", "POST", origin=origin)
        assert (status, body) == (403, {"error": "sent by a page of another site"})


def test_any_host_with_a_token_that_closes_the_data() -> None:
    def guard(app: Any) -> Guard:
        return Guard(app, None, TOKEN)

    for path in ("/predict", "/heatmap", "/model", "/training/abc"):
        assert request(path, host="ward.example", guard=guard)[0] == 401
        for wrong in ("", "Bearer ", f"Bearer {TOKEN[:-1]}", "Bearer é", f"Basic {TOKEN}"):
            assert request(path, guard=guard, authorization=wrong)[0] == 401, wrong
        assert request(path, guard=guard, authorization=f"Bearer {TOKEN}")[0] == 200
    for path in ("/", "/static/page.js", "/docs", "/health"):
        assert request(path, host="ward.example", guard=guard)[0] == 200


def test_bodies_are_limited() -> None:
    limits = Limits(body_mib=1, pause_s=0.05, upload_s=0.2)

    def guard(app: Any) -> Guard:
        return Guard(app, LOCAL_HOSTS, None, limits)

    mib = bytes(2**20)
    assert request(method="POST", parts=[mib], guard=guard)[2] == 2**20
    assert request(method="POST", parts=[mib, b"x"], guard=guard)[0] == 413
    status, _, body = request(method="POST", guard=guard, content_length=str(2**20 + 1))
    assert (status, body) == (413, {"error": "over 1 MiB; send fewer files at once"})
    assert request(method="POST", guard=guard, content_length="-1")[0] == 413
    assert request(method="POST", pause_s=0.2, guard=guard)[0] == 408
    slow = [b"x"] * 100  # no long pause, but long as a whole
    assert request(method="POST", parts=slow, pause_s=0.01, guard=guard)[0] == 408
    assert request(method="POST", parts=slow[:3], pause_s=0.01, guard=guard)[2] == 3


def test_too_many_requests_at_once_are_told_to_wait() -> None:
    async def run() -> list[Any]:
        started, may_end = asyncio.Event(), asyncio.Event()

        async def wait(scope: Any, receive: Any, send: Any) -> None:
            started.set()
            await may_end.wait()
            await answer(scope, receive, send)

        guard = Guard(wait, limits=Limits(waiting=1))
        scope = {"type": "http", "path": "/predict", "headers": [(b"host", LOCAL.encode())]}
        results: list[list[Any]] = [[], [], []]

        async def ask(place: int, method: str) -> None:
            async def send(message: Any) -> None:
                results[place].append(message)

            async def receive() -> Any:
                return {"type": "http.request", "body": b""}

            await guard({**scope, "method": method}, receive, send)

        first = asyncio.create_task(ask(0, "POST"))
        await started.wait()
        await ask(1, "POST")
        other = asyncio.create_task(ask(2, "GET"))  # not counted
        may_end.set()
        await asyncio.gather(first, other)
        return [each[0] for each in results]

    first, second, third = asyncio.run(run())
    assert [first["status"], second["status"], third["status"]] == [200, 503, 200]
    assert (b"retry-after", b"1") in second["headers"]


def test_every_answer_has_the_headers_of_a_closed_page() -> None:
    for headers in (request()[1], request(host="evil.com")[1]):
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in headers
    assert "unsafe-eval" not in request("/docs")[1]["content-security-policy"]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("192.168.1.2", False), ("ward.example", False)),
    ],
)
def test_which_addresses_are_local(host: str, expected: bool) -> None:
    assert is_local(host) == expected
