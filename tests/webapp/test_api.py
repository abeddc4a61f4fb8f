"""The interface of the page: predictions as predict.py makes them, heat maps, refusals in JSON."""

import asyncio
import base64
import csv
import io
import json
import logging
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

import predict
from evaluation.ood import Neighbours
from inference.predictor import Prediction, SlicePredictor
from inference.training_slices import TrainingSlices
from tests.support import page_server
from tests.support.builders import Patch, Run
from tests.support.dicom_files import HIDDEN, encode_dicom
from webapp import answers, api


def send(client: TestClient, *files: tuple[str, bytes], **options: Any) -> Any:
    """Post files to /predict and return the answer."""
    return client.post("/predict", files=[("files", each) for each in files], **options)


def zip_files(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def test_results_are_those_of_predict(
    client: TestClient, phantom: Path, first_run: Run, tmp_path: Path
) -> None:
    content = phantom.read_bytes()
    answer = send(client, ("phantom.png", content), ("bad.png", b"text")).json()
    folder, table = tmp_path / "in", tmp_path / "out.csv"
    folder.mkdir()
    (folder / "phantom.png").write_bytes(content)
    (folder / "bad.png").write_bytes(b"text")
    best = first_run.root / page_server.BEST
    files = [str(folder / name) for name in ("phantom.png", "bad.png")]
    assert predict.main([str(best), *files, "--out", str(table), "--device", "cpu"]) == 0
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [Path(row["file"]).name for row in rows] == [each["file"] for each in answer["results"]]
    good, bad = answer["results"]
    assert good["predicted"] == rows[0]["predicted"]
    for name in answer["classes"]:
        assert good["probabilities"][name] == pytest.approx(float(rows[0][f"p_{name}"]), abs=1e-5)
    assert "|".join(good["prediction_set"]) == rows[0]["prediction_set"]
    assert str(good["needs_review"]) == rows[0]["needs_review"]
    assert (bad["error"], bad["kind"], bad["predicted"]) == (rows[1]["error"], "slice", None)
    assert "not a medical device" in answer["notice"]
    assert any(line.startswith("PHANTOM") for line in answer["warnings"])


def test_pictures_are_added_on_request(client: TestClient, phantom: Path) -> None:
    file = ("phantom.png", phantom.read_bytes())
    (plain,), (shown,) = (
        send(client, file, data=data).json()["results"] for data in ({}, {"pictures": "true"})
    )
    assert plain["picture"] is None
    picture = Image.open(io.BytesIO(base64.b64decode(shown["picture"])))
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(phantom)))


def test_lines_arrive_one_by_one(client: TestClient, phantom: Path) -> None:
    files = [(f"p/{number}.png", phantom.read_bytes()) for number in range(40)]
    files += [("p/readme.txt", b"text"), ("p/Thumbs.db", b"x")]
    answer = send(client, *files, headers={"accept": api.LINES})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["file"] for line in lines[:40]] == [name for name, _ in files[:40]]
    assert lines[40]["kind"] == "note"
    assert "files that are not images were passed over: 1 .txt" in lines[40]["note"]


def test_a_failure_after_the_first_lines_is_a_line(
    client: TestClient, phantom: Path, monkeypatch: Patch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("with a path")
        yield

    monkeypatch.setattr(answers, "predict", fail)
    file = ("phantom.png", phantom.read_bytes())
    (line,) = send(client, file, headers={"accept": api.LINES}).text.splitlines()
    assert json.loads(line)["error"] == "failed (ValueError); try another file"
    answer = send(client, file)
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "failed (ValueError); try another file"},
    )


def test_series_and_patients_have_results(client: TestClient, phantom: Path) -> None:
    pixels = np.asarray(Image.open(phantom))
    frames = np.stack([pixels, 255 - pixels])
    answer = send(client, ("two.dcm", encode_dicom(frames, n_frames=2)))
    results = answer.json()["results"]
    assert [each["kind"] for each in results] == ["slice", "slice", "series", "patient"]
    assert [each["file"] for each in results[:2]] == ["two.dcm#1", "two.dcm#2"]
    assert results[3]["patient"]
    assert not [word for word in HIDDEN if word in answer.text.lower()]
    content = phantom.read_bytes()
    files = [(f"all/{who}/{number}.png", content) for who in "ab" for number in "12"]
    kinds = [each["kind"] for each in send(client, *files).json()["results"]]
    assert kinds == ["slice"] * 4 + ["patient"] * 2


def test_archives_are_unpacked(client: TestClient, phantom: Path) -> None:
    content = phantom.read_bytes()
    archive = zip_files(**{"x/1.png": content, "x/2.png": content, "x/notes.txt": b"text"})
    answer = send(client, ("all.zip", archive)).json()
    assert [each["file"] for each in answer["results"]] == ["all.zip/x/1.png", "all.zip/x/2.png"]
    assert answer["notes"] == [
        "all.zip: 1 files are not images and are passed over, such as x/notes.txt"
    ]


def test_a_file_that_is_not_taken_does_not_hide_the_others(
    client: TestClient, phantom: Path
) -> None:
    content = phantom.read_bytes()
    answer = send(client, ("a.png", content), ("x.zip", b"PK\3\4 damaged")).json()
    error, good = answer["results"]
    assert (error["file"], error["kind"], error["predicted"]) == ("x.zip", "slice", None)
    assert "damaged" in error["error"]
    assert good["file"] == "a.png"
    assert good["predicted"]
    answer = send(client, ("x.zip", b"PK\3\4 damaged"))
    assert (answer.status_code, answer.json()["error"][:6]) == (422, "x.zip:")
    answer = send(client, ("p/notes.txt", b"text")).json()
    assert answer["results"] == []
    assert "1 .txt" in answer["notes"][0]


def test_a_heat_map_is_not_computed_for_a_client_that_left(
    client: TestClient, phantom: Path, monkeypatch: Patch
) -> None:
    explained: list[object] = []
    monkeypatch.setattr(SlicePredictor, "explain", lambda *_: explained.append(1))
    files = {"files": ("a.png", phantom.read_bytes())}
    request = client.build_request("POST", "/heatmap", files=files)
    body = request.read()
    messages = [{"type": "http.request", "body": body}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def record(message: Any) -> None:
        sent.append(message)

    scope = {
        **{"type": "http", "method": "POST", "path": "/heatmap", "query_string": b""},
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
    }

    async def run() -> None:
        await client.app(scope, receive, record)

    asyncio.run(run())
    assert sent[0]["status"] == api.CLIENT_LEFT
    assert explained == []


def test_a_cancelled_request_waits_for_its_thread() -> None:
    ended: list[str] = []

    def use_files() -> None:
        time.sleep(0.2)
        ended.append("thread")

    async def cancel() -> None:
        task = asyncio.ensure_future(api.run_to_its_end(use_files))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        task.cancel()  # as the event loop ends
        with pytest.raises(asyncio.CancelledError):
            await task
        ended.append("request")

    asyncio.run(cancel())
    assert ended == ["thread", "request"]


def test_a_heat_map_has_the_size_of_the_picture(
    client: TestClient, phantom: Path, predictor: SlicePredictor
) -> None:
    files = {"files": ("a.png", phantom.read_bytes())}
    answer = client.post("/heatmap", files=files, data={"class_name": "Menin"})
    assert answer.headers["content-type"] == "image/png"
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    prepared = predictor.preprocess(np.asarray(Image.open(phantom)))
    assert np.array_equal(found, np.rint(255 * predictor.explain(prepared, "Menin")))
    assert client.post("/heatmap", files=files).status_code == 200
    for data, line in (
        ({"class_name": "Other"}, "class_name Other: no class of the model; take Glioma, Menin"),
        ({"frame": "2"}, "frame 2: the file has no such frame"),
        ({"frame": "0"}, "frame: Input should be greater than or equal to 1"),
    ):
        answer = client.post("/heatmap", files=files, data=data)
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(line)
    answer = client.post("/heatmap", files={"files": ("a.png", b"text")})
    assert answer.json()["error"].startswith("this file cannot be read: not a JPEG")


def test_training_slices_are_found_by_hash(
    client: TestClient, phantom: Path, training: TrainingSlices, tmp_path: Path
) -> None:
    (result,) = send(client, ("a.png", phantom.read_bytes())).json()["results"]
    assert len(result["nearest"]) == 5
    digest = result["nearest"][0]["sha256"]
    assert result["nearest"][0]["is_shown"]
    answer = client.get(f"/training/{digest}")
    assert Image.open(io.BytesIO(answer.content)).size == (160, 160)
    for other in ("0" * 64, "..%2F..%2Fetc%2Fpasswd", "x"):
        answer = client.get(f"/training/{other}")
        assert answer.status_code == 404
        assert "error" in answer.json()
    changed = tmp_path / "changed.png"
    changed.write_bytes(phantom.read_bytes())
    training.paths[digest] = str(changed)
    assert training.read(digest) is None  # not the content of training


def test_what_the_network_says_about_itself(client: TestClient) -> None:
    model = client.get("/model").json()
    assert model["classes"] == ["Glioma", "Menin", "Tumor"]
    assert "no healthy class" in model["limit"]
    assert model["warnings"][0].startswith("PHANTOM")
    assert client.get("/health").json() == {"status": "ok"}


def test_the_documentation_is_served_from_here(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/predict",
        "/heatmap",
        "/training/{sha256}",
        "/model",
        "/health",
    }
    upload = schema["components"]["schemas"]["Body_heatmap_heatmap_post"]["properties"]["files"]
    assert upload["format"] == "binary"  # the page of the documentation offers a file
    (scheme,) = schema["components"]["securitySchemes"].values()
    assert scheme["scheme"] == "bearer"  # and takes the token
    for path in ("/", "/docs", "/docs/swagger-ui.css", "/static/page.js", "/static/viewer.js"):
        assert client.get(path).status_code == 200
    for path in ("/docs/index.html", "/static/../api.py", "/other", "/static/"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()) == (404, {"error": "no such page"})
    assert client.get("/predict").json() == {"error": "Method Not Allowed"}


def test_requests_without_files_are_refused(client: TestClient) -> None:
    answer = client.post("/predict")
    assert (answer.status_code, answer.json()["error"]) == (422, "files: Field required")
    answer = client.post("/predict", data={"files": "text"})
    assert answer.status_code == 422
    answer = send(client, *((f"{number}.png", b"x") for number in range(1001)))
    assert answer.status_code == 400
    assert "Too many files" in answer.json()["error"]


def test_unexpected_errors_name_no_file(
    client: TestClient, phantom: Path, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret.png")

    monkeypatch.setattr(SlicePredictor, "explain", fail)
    with caplog.at_level(logging.INFO):
        answer = client.post("/heatmap", files={"files": ("secret.png", phantom.read_bytes())})
    assert answer.json() == {"error": "failed (RuntimeError); try another file"}
    assert "secret" not in caplog.text


def test_a_review_is_put_in_words() -> None:
    def build(found: tuple[str, ...] | None, is_ood: bool = False) -> Prediction:
        nearest: Neighbours = ()
        needs = None if found is None else len(found) != 1 or is_ood
        return Prediction(np.array([1.0]), "a", 1.0, found, needs, is_ood, 0.1, nearest)

    for prediction, words in (
        (build(("a",), True), "differs from the training images"),
        (build(None), "no prediction set was fitted"),
        (build(()), "no class reaches the probability that 95 of 100"),
        (build(("a", "b")), "holds a and b. For 95 of 100 slices"),
        (build(("a",)), "holds a alone. For 95 of 100"),
    ):
        assert words in prediction.describe_review()
