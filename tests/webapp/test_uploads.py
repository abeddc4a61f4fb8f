"""What the page does with the paths that clients name, asked over HTTP without a browser."""

import json
import os
import secrets
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inference.predictor import load_classifier
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run, list_files
from tests.support.dicom_files import build_dataset, encode_dataset
from tests.support.page_server import BEST, Page, end, start
from webapp import page_content

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


def ask(
    served: Page, path: str, content: bytes | None = None, kind: str = "application/json"
) -> str:
    request = urllib.request.Request(served.address + path, content, {"content-type": kind})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        return answer.read().decode()


def upload(served: Page, path: Path) -> str:
    """Where the page has put a file."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{path.name}"\r\n\r\n'
    body = head.encode() + path.read_bytes() + b"\r\n--x--\r\n"
    (place,) = json.loads(
        ask(served, "/gradio_api/upload", body, "multipart/form-data; boundary=x")
    )
    return place


def send(served: Page, where: str, event: str, data: list[Any], session: str) -> None:
    """What happens to a part of the page, in the name of a reader."""
    config = json.loads(ask(served, "/config"))
    (part,) = (one["id"] for one in config["components"] if one["props"].get("elem_id") == where)
    (number,) = (one["id"] for one in config["dependencies"] if [part, event] in one["targets"])
    question = {"data": data, "fn_index": number, "session_hash": session}
    ask(served, "/gradio_api/queue/join", json.dumps(question).encode())


def hear(served: Page, session: str) -> str:
    """All that the page answers a reader, when it has ended."""
    return ask(served, f"/gradio_api/queue/data?session_hash={session}")


def name_file(path: str | Path, is_stream: bool = False) -> dict[str, Any]:
    return {"path": str(path), "is_stream": is_stream, "meta": {"_type": "gradio.FileData"}}


def drop(served: Page, path: str | Path, where: str, is_stream: bool = False) -> str:
    """What the page says when a client names a path as the file that was dropped."""
    file, session = name_file(path, is_stream), secrets.token_hex(8)
    send(served, where, "upload", [file, None] if where == "dropped" else [[file]], session)
    return hear(served, session)


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


def test_nothing_old_is_shown_behind_a_refusal(served: Page, phantom: Path) -> None:
    session = secrets.token_hex(8)
    for path, is_shown in ((upload(served, phantom), True), (str(served.folder), False)):
        send(served, "dropped", "upload", [name_file(path), None], session)
        assert ("data:image" in hear(served, session)) == is_shown
        send(served, "strength", "change", [0.5, None], session)
        assert ("data:image" in hear(served, session)) == is_shown


def test_a_single_slice_does_not_wait_for_many_files(
    served: Page, phantom: Path, tmp_path: Path
) -> None:
    frames = np.zeros((3000, 64, 64), np.uint8)
    (tmp_path / "long.dcm").write_bytes(encode_dataset(build_dataset(frames, n_frames=3000)))
    long, short = upload(served, tmp_path / "long.dcm"), upload(served, phantom)
    tables = set(served.folder.rglob("*.csv"))
    send(served, "many", "upload", [[name_file(long)]], "many")
    assert "data:image" in drop(served, short, "dropped")
    assert set(served.folder.rglob("*.csv")) == tables
    assert "3001 rows" in hear(served, "many")
    assert len(set(served.folder.rglob("*.csv"))) == len(tables) + 1


def test_files_are_swept_away_while_the_page_is_open(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from webapp import gradio_page

    monkeypatch.setattr(gradio_page, "SWEPT_S", 0.05)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    classifier = load_classifier([Path(BEST)], "cpu", 1)
    folder = tmp_path / "page"
    old, young = folder / "a" / "old", folder / "young"
    old.parent.mkdir(parents=True)
    for path in (old, young):
        path.write_bytes(b"x")
    os.utime(old, (0, time.time() - gradio_page.KEPT_S - 1))
    training = page_content.TrainingSlices(Path(), {})
    with TestClient(gradio_page.build_site(classifier, training, folder)):
        end_s = time.monotonic() + 10
        while old.exists() and time.monotonic() < end_s:
            time.sleep(0.05)
    assert not old.exists()
    assert young.exists()
