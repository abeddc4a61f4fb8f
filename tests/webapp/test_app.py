"""app.py in a browser: uploads, heat maps, many files, no connection to elsewhere, shutdown."""

import http.client
import io
import shutil
import signal
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.builders import Run
from tests.support.dicom_files import HIDDEN, encode_dicom
from tests.support.page_server import ENDED, Page, end, start

pytest.importorskip("gradio", reason="gradio is not installed: make test-app runs these")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make test-app runs these"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    *(pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(180)),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as maker:
        browser = maker.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, served: Page) -> Iterator[Any]:
    opened = visit(browser, served)
    yield opened
    opened.close()


def visit(browser: Any, served: Page, width: int = 1280) -> Any:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(served.url)
    page.wait_for_selector("#upload input[type=file]", state="attached")
    return page


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "bad.png"
    path.write_text("this is text")
    return path


def drop(page: Any, path: Path) -> None:
    """Drop a file and wait for the prediction under its name."""
    page.set_input_files("#upload input[type=file]", str(path))
    page.wait_for_selector(f"#prediction h2:has-text('{path.name}')", timeout=WAIT_MS)


def drop_many(page: Any, *paths: Path) -> None:
    """Drop files on the other tab and wait for their rows."""
    page.click("button[role=tab]:has-text('Many files')")
    page.set_input_files("#many input[type=file]", [str(path) for path in paths])
    page.wait_for_selector(f"#table tbody tr >> nth={len(paths) - 1}")


def wait_for_heatmap(page: Any, class_name: str = "") -> np.ndarray:
    page.wait_for_selector(f"#picture img[alt*='heat map for {class_name}']", timeout=WAIT_MS)
    return read_picture(page)


def read_picture(page: Any) -> np.ndarray:
    """Return the displayed image, int [H, W, 3]."""
    source = page.get_attribute("#picture img", "src")
    with urllib.request.urlopen(source) as answer:  # a data: URL
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=int)


# ---- one slice


def test_a_slice_is_predicted(page: Any, phantom: Path, served: Page) -> None:
    drop(page, phantom)
    text = page.inner_text("#prediction")
    assert all(words in text for words in ("Glioma", "Menin", "Tumor", "It could be"))
    assert "PHANTOM" in page.inner_text("#top")
    assert page.locator("#nearest figure img[alt^='Training slice']").count() == 5
    wait_for_heatmap(page)
    uploads = [path for path in served.folder.rglob("*") if path.is_file()]
    assert [path for path in uploads if path.stat().st_size] == []


def test_the_heat_map_follows_strength_and_class(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    assert np.ptp(wait_for_heatmap(page), axis=2).max() > 20
    for strength, is_coloured in (("0", False), ("1", True)):
        page.fill("#strength input[type=number]", strength)
        page.keyboard.press("Tab")
        while (np.ptp(read_picture(page), axis=2).max() > 0) != is_coloured:
            page.wait_for_timeout(100)
    chosen = page.locator("#target input:checked").get_attribute("value")
    other = next(name for name in ("Glioma", "Menin") if name != chosen)
    page.click(f"#target label:has-text('{other}')")
    wait_for_heatmap(page, other)
    assert other in page.inner_text("#legend")


def test_the_page_stays_usable_after_an_error(page: Any, phantom: Path, bad_file: Path) -> None:
    drop(page, phantom)
    page.set_input_files("#upload input[type=file]", str(bad_file))
    page.wait_for_selector("#prediction .box:has-text('This file cannot be read')")
    assert "Not a JPEG" in page.inner_text("#prediction")
    assert "phantom.png" not in page.inner_text("#prediction")
    page.wait_for_timeout(1500)  # for a late heat map of the first slice
    assert page.locator("#picture img").count() == 0
    assert "Traceback" not in page.content()
    drop(page, phantom)
    wait_for_heatmap(page)


def test_a_drop_during_a_heat_map_is_predicted(page: Any, phantom: Path, tmp_path: Path) -> None:
    dark = tmp_path / "dark.png"
    Image.fromarray(np.full((96, 96), 9, np.uint8)).save(dark)
    for first, second in ((phantom, dark), (dark, phantom)):
        drop(page, first)
        drop(page, second)  # while the heat map of the first is computed
        wait_for_heatmap(page)
        page.wait_for_timeout(1000)
        assert (read_picture(page).shape[0] == 96) == (second == dark)


def test_dicom_frames_without_patient_data(page: Any, phantom: Path, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(phantom))
    frames = np.stack([pixels, 255 - pixels])
    (tmp_path / "two.dcm").write_bytes(encode_dicom(frames, n_frames=2))
    drop(page, tmp_path / "two.dcm")
    assert "frame 1 of 2" in page.inner_text("#prediction h2")
    page.fill("#frame input[type=number]", "2")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.wait_for_selector("#prediction h2:has-text('frame 2 of 2')")
    wait_for_heatmap(page)
    text = page.inner_text("body").lower()
    assert not [word for word in HIDDEN if word in text]


# ---- many files, layout


def test_many_files_give_a_table_to_download(page: Any, phantom: Path, bad_file: Path) -> None:
    drop_many(page, phantom, bad_file)
    assert "2 rows" in page.inner_text("#summary")
    with page.expect_download() as waiting:
        page.click("#csv")
    assert waiting.value.suggested_filename == "predictions-research-use-only-phantom.csv"
    head, first, second = Path(waiting.value.path()).read_text("utf-8").splitlines()
    assert head.startswith("file,patient,predicted,confidence,p_Glioma")
    assert first.startswith("phantom.png,")
    assert second.startswith("bad.png,,,")
    assert "not a JPEG" in second


def test_it_fits_a_phone(browser: Any, served: Page, phantom: Path, bad_file: Path) -> None:
    page = visit(browser, served, width=390)
    drop(page, phantom)
    wait_for_heatmap(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#picture img").bounding_box()["width"] > 250  # one column
    drop_many(page, phantom, bad_file)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_notice_stays_and_every_control_has_a_name(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    wait_for_heatmap(page)
    for position in ("0", "document.body.scrollHeight"):
        page.evaluate(f"window.scrollTo(0, {position})")
        box = page.locator("#notice").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 901
    text = page.inner_text("#notice")
    assert "not a medical device" in text
    assert "There is no healthy class" in text
    nameless = page.evaluate(
        "[...document.querySelectorAll('input:not([type=file]), button, img')].filter("
        "one => one.checkVisibility() && !(one.ariaLabel || one.labels?.length || one.alt ||"
        " one.innerText?.trim() || one.title)).map(one => one.outerHTML.slice(0, 150))"
    )
    assert nameless == []


# ---- no connection to elsewhere


def test_all_requests_go_to_this_machine(page: Any, phantom: Path) -> None:
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.reload()
    page.wait_for_selector("#upload input[type=file]", state="attached")
    drop(page, phantom)
    wait_for_heatmap(page)
    drop_many(page, phantom)
    assert len(requested) > 10
    local = ("http://127.0.0.1:", "data:", "blob:")
    assert [url for url in requested if not url.startswith(local)] == []
    blocked = page.evaluate(
        "() => new Promise(done => {"
        "document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));"
        "fetch('http://192.0.2.1/').catch(() => {});})"
    )
    assert blocked.startswith("http://192.0.2.1")


def test_it_listens_on_one_address(served: Page) -> None:
    with pytest.raises(ConnectionRefusedError):  # another loopback address
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


# ---- start and end


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_end_it_and_delete_the_uploads(first_run: Run, name: str) -> None:
    page = start(first_run.root)
    connection = http.client.HTTPConnection("127.0.0.1", page.port)
    connection.request("GET", "/gradio_api/heartbeat/abc")  # an open page keeps this connection
    connection.getresponse().read(1)
    (page.folder / "image").write_bytes(b"x")
    page.process.send_signal(getattr(signal, name))
    assert page.process.wait(30) == 0
    assert end(page) == ENDED
    assert not page.folder.exists()
