"""Paths that clients name as uploads, sent over HTTP without a browser."""

import json
import os
import secrets
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.predictor import SlicePredictor
from tests.support.builders import Patch, list_files
from tests.support.dicom_files import encode_dicom
from tests.support.page_server import Page
from webapp import page_content

pytest.importorskip("gradio", reason="gradio is not installed: make test-app runs these")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
LIMIT_S = 60


def request(
    served: Page, path: str, content: bytes | None = None, kind: str = "application/json"
) -> str:
    question = urllib.request.Request(served.url + path, content, {"content-type": kind})
    with urllib.request.urlopen(question, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def upload(served: Page, path: Path) -> str:
    """Upload a file and return its path on the server."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + b"\r\n--x--\r\n"
    answer = request(served, "/gradio_api/upload", body, "multipart/form-data; boundary=x")
    return json.loads(answer)[0]


def send(served: Page, element: str, event: str, data: list[Any], session: str) -> None:
    """Trigger an event of a component."""
    config = json.loads(request(served, "/config"))
    (part,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == element)
    (number,) = (one["id"] for one in config["dependencies"] if [part, event] in one["targets"])
    question = {"data": data, "fn_index": number, "session_hash": session}
    request(served, "/gradio_api/queue/join", json.dumps(question).encode())


def receive(served: Page, session: str) -> str:
    """Return all answers to a session."""
    return request(served, f"/gradio_api/queue/data?session_hash={session}")


def name_file(path: str | Path, is_stream: bool = False) -> dict[str, Any]:
    return {"path": str(path), "is_stream": is_stream, "meta": {"_type": "gradio.FileData"}}


def drop(served: Page, path: str | Path, element: str, is_stream: bool = False) -> str:
    """Name a path as the dropped file and return the answer."""
    file, session = name_file(path, is_stream), secrets.token_hex(8)
    send(served, element, "upload", [file, None] if element == "upload" else [[file]], session)
    return receive(served, session)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("element", ["upload", "many"])
def test_other_files_are_neither_read_nor_changed(
    served: Page, phantom: Path, element: str, is_stream: bool
) -> None:
    content, link = phantom.read_bytes(), served.folder / f"{secrets.token_hex(4)}.png"
    link.symlink_to(phantom)
    parents = served.folder.joinpath(*[".."] * len(served.folder.parents), *phantom.parts[1:])
    before = list_files(served.folder)
    for path in (phantom, parents, link):
        answer = drop(served, path, element, is_stream)
        assert "process_completed" in answer
        assert "data:image" not in answer
        assert "phantom.png" not in answer
        assert link.is_symlink()
        assert phantom.read_bytes() == content
        assert list_files(served.folder) == before  # not copied either
    link.unlink()


@pytest.mark.parametrize("element", ["upload", "many"])
def test_a_folder_is_refused(served: Page, element: str) -> None:
    for path in (served.folder, served.folder / "inner"):
        path.mkdir(exist_ok=True)
        assert "Not uploaded on this page" in drop(served, path, element)
        assert path.is_dir()


def test_a_refusal_removes_the_old_image(served: Page, phantom: Path) -> None:
    session = secrets.token_hex(8)
    for path, is_shown in ((upload(served, phantom), True), (str(served.folder), False)):
        send(served, "upload", "upload", [name_file(path), None], session)
        assert ("data:image" in receive(served, session)) == is_shown
        send(served, "strength", "change", [None, 0.5], session)
        assert ("data:image" in receive(served, session)) == is_shown


def test_single_slices_do_not_wait_for_many(served: Page, phantom: Path, tmp_path: Path) -> None:
    frames = np.zeros((3000, 64, 64), np.uint8)
    (tmp_path / "long.dcm").write_bytes(encode_dicom(frames, n_frames=3000))
    long, short = upload(served, tmp_path / "long.dcm"), upload(served, phantom)
    tables = set(served.folder.rglob("*.csv"))
    send(served, "many", "upload", [[name_file(long)]], "many")
    answer = drop(served, short, "upload")
    assert "data:image" in answer
    assert "phantom.png" in answer
    assert set(served.folder.rglob("*.csv")) == tables
    assert "3001 rows" in receive(served, "many")
    assert len(set(served.folder.rglob("*.csv"))) == len(tables) + 1
    assert not Path(long).exists()
    assert not Path(short).exists()
    events = json.loads(request(served, "/config"))["dependencies"]
    assert {event["trigger_mode"] for event in events} == {"multiple", "always_last"}


def test_old_files_are_deleted_while_the_page_is_open(
    predictor: SlicePredictor, tmp_path: Path, monkeypatch: Patch
) -> None:
    from starlette.testclient import TestClient

    from webapp import gradio_page

    monkeypatch.setattr(gradio_page, "CLEANUP_S", 0.05)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    old, young = tmp_path / "old", tmp_path / "young"
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - gradio_page.MAX_AGE_S - 1))
    training = page_content.TrainingSlices(Path(), {})
    with TestClient(gradio_page.build_site(predictor, training, tmp_path)):
        end_s = time.monotonic() + 10
        while old.exists() and time.monotonic() < end_s:
            time.sleep(0.05)
    assert not old.exists()
    assert young.exists()
