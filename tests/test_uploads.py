"""What the page does with the paths that clients name, asked over HTTP without a browser."""

import json
import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run, list_files
from fixtures_page import Page, end, start
from PIL import Image

from imaging.phantom import plan_phantoms, render_phantom

pytest.importorskip("gradio", reason="gradio is not installed: make test-app runs these")
pytestmark = pytest.mark.timeout(180)
LIMIT_S = 60


@pytest.fixture(scope="module")
def served(first_run: Run) -> Iterator[Page]:
    one = start(first_run.root)
    yield one
    end(one)


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    path = tmp_path / "phantom.png"
    Image.fromarray(render_phantom(plan_phantoms(6, 5)[0])[0]).save(path)
    return path


def ask(page: Page, path: str, content: bytes | None = None, kind: str = "application/json") -> str:
    request = urllib.request.Request(page.address + path, content, {"content-type": kind})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def upload(page: Page, path: Path) -> str:
    """Where the page has put a file."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + b"\r\n--x--\r\n"
    (place,) = json.loads(ask(page, "/gradio_api/upload", body, "multipart/form-data; boundary=x"))
    return place


def drop(page: Page, path: str | Path, where: str, is_stream: bool = False) -> str:
    """All that the page says when a client names a path as the file that was dropped."""
    config = json.loads(ask(page, "/config"))
    (box,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == where)
    (event,) = (one for one in config["dependencies"] if [box, "upload"] in one["targets"])
    file = {"path": str(path), "is_stream": is_stream, "meta": {"_type": "gradio.FileData"}}
    data: list[Any] = [file, None] if where == "dropped" else [[file]]
    session = secrets.token_hex(8)
    question = {"data": data, "fn_index": event["id"], "session_hash": session}
    ask(page, "/gradio_api/queue/join", json.dumps(question).encode())
    return ask(page, f"/gradio_api/queue/data?session_hash={session}")


@pytest.mark.parametrize("where", ["dropped", "many"])
def test_an_upload_is_answered_and_deleted(served: Page, phantom: Path, where: str) -> None:
    place = upload(served, phantom)
    assert "phantom.png" in drop(served, place, where)
    assert not Path(place).exists()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("where", ["dropped", "many"])
@pytest.mark.parametrize("way", ["straight", "up", "link"])
def test_a_file_that_was_not_uploaded_is_left_alone(
    served: Page, phantom: Path, way: str, where: str, is_stream: bool
) -> None:
    content, link = phantom.read_bytes(), served.folder / f"{secrets.token_hex(4)}.png"
    link.symlink_to(phantom)
    up = served.folder.joinpath(*[".."] * len(served.folder.parents), *phantom.parts[1:])
    path = {"straight": phantom, "up": up, "link": link}[way]
    before = list_files(served.folder)
    words = drop(served, path, where, is_stream)
    assert "process_completed" in words
    assert "data:image" not in words
    assert "phantom.png" not in words
    assert link.is_symlink()
    assert phantom.read_bytes() == content
    assert list_files(served.folder) == before  # nor was it copied there
    link.unlink()


@pytest.mark.parametrize("where", ["dropped", "many"])
@pytest.mark.parametrize("inner", ["", "inner"])
def test_a_folder_is_no_upload(served: Page, where: str, inner: str) -> None:
    path = served.folder / inner
    path.mkdir(exist_ok=True)
    assert "Not dropped on this page" in drop(served, path, where)
    assert path.is_dir()
