"""app.py in a real browser: drop, answer, heat map, bad file, many files, nothing from outside."""

import http.client
import io
import json
import os
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import app
from phantoms.generator import plan_phantoms, render_phantom
from tests.support.builders import Run, expect_refusal
from tests.support.dicom_files import HIDDEN, build_dataset, encode_dataset, encode_dicom
from tests.support.page_server import BEST, Page, end, find_port, start

pytest.importorskip("gradio", reason="gradio is not installed: make test-app runs these")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make test-app runs these"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
LIMIT_S = 2.0  # from the drop to the probabilities
WAIT_MS = 30_000


@pytest.fixture(scope="module")
def served(first_run: Run) -> Iterator[Page]:
    one = start(first_run.root)
    yield one
    said = end(one)
    assert said == "ended; the pictures are deleted\n"  # nothing of any file above was logged
    assert one.process.returncode == 0
    assert not one.folder.exists()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as maker:
        opened = maker.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def asked() -> list[str]:
    """Every address that the page asks for."""
    return []


@pytest.fixture
def page(browser: Any, served: Page, asked: list[str]) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("request", lambda request: asked.append(request.url))
    visit(opened, served)
    yield opened
    opened.close()


def visit(page: Any, served: Page) -> None:
    page.goto(served.address)
    page.wait_for_selector("#dropped input[type=file]", state="attached")


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    path = tmp_path / "phantom.png"
    Image.fromarray(draw_phantom()).save(path)
    return path


def draw_phantom() -> np.ndarray:
    return render_phantom(plan_phantoms(6, 5)[0])[0]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "bad.png"
    path.write_text("this is text")
    return path


def drop(page: Any, path: Path) -> None:
    """Drop a file and wait for the answer that is headed by its name."""
    page.set_input_files("#dropped input[type=file]", str(path))
    page.wait_for_selector(f"#answer h2:has-text('{path.name}')", timeout=WAIT_MS)


def wait_for_heatmap(page: Any, class_name: str = "") -> np.ndarray:
    page.wait_for_selector(f"#picture img[alt*='heat map for {class_name}']", timeout=WAIT_MS)
    return read_picture(page)


def read_picture(page: Any) -> np.ndarray:
    """What is shown, as int [H, W, 3]."""
    source = page.get_attribute("#picture img", "src")
    with urllib.request.urlopen(source) as answer:  # data: alone
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"), dtype=int)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited for ten seconds")


# ---- one slice


def test_a_slice_is_answered_within_two_seconds(page: Any, phantom: Path, served: Page) -> None:
    started_s = time.perf_counter()
    drop(page, phantom)
    assert time.perf_counter() - started_s < LIMIT_S
    words = page.inner_text("#answer")
    assert all(name in words for name in ("Glioma", "Menin", "Tumor"))
    assert "It could be" in words
    assert "PHANTOM" in page.inner_text("#top")
    assert page.locator("#nearest figure img[alt^='Training slice']").count() == 5
    wait_for_heatmap(page)
    assert [
        path for path in served.folder.rglob("*") if path.is_file() and path.stat().st_size
    ] == []


def test_the_heat_map_follows_strength_and_class(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    coloured = wait_for_heatmap(page)
    assert np.ptp(coloured, axis=2).max() > 20
    page.fill("#strength input[type=number]", "0")
    page.keyboard.press("Tab")
    wait_until(lambda: np.ptp(read_picture(page), axis=2).max() == 0)
    page.fill("#strength input[type=number]", "1")
    page.keyboard.press("Tab")
    wait_until(lambda: np.ptp(read_picture(page), axis=2).max() > 20)
    chosen = page.locator("#target input:checked").get_attribute("value")
    other = next(name for name in ("Glioma", "Menin") if name != chosen)
    page.click(f"#target label:has-text('{other}')")
    wait_for_heatmap(page, other)
    assert other in page.inner_text("#words")


def test_a_bad_file_is_one_line_and_the_page_goes_on(page: Any, phantom: Path, text: Path) -> None:
    drop(page, phantom)
    page.set_input_files("#dropped input[type=file]", str(text))
    page.wait_for_selector("#answer .box:has-text('This file cannot be read')")
    assert "Not a JPEG, PNG, TIFF, BMP or DICOM picture." in page.inner_text("#answer")
    assert "phantom.png" not in page.inner_text("#answer")
    page.wait_for_timeout(1500)  # the heat map of the slice before would have come by now
    assert page.locator("#picture img").count() == 0
    assert "Traceback" not in page.content()
    drop(page, phantom)
    wait_for_heatmap(page)


@pytest.mark.parametrize("is_dark", [True, False])
def test_a_drop_that_comes_early_is_answered_like_any_other(
    page: Any, served: Page, phantom: Path, tmp_path: Path, is_dark: bool
) -> None:
    with urllib.request.urlopen(f"{served.address}/config") as answer:
        events = json.load(answer)["dependencies"]
    assert {event["trigger_mode"] for event in events} == {"multiple", "always_last"}
    dark = tmp_path / "dark.png"
    Image.fromarray(np.full((96, 96), 9, np.uint8)).save(dark)
    drop(page, phantom if is_dark else dark)
    drop(page, dark if is_dark else phantom)  # while the heat map of the first is being made
    wait_for_heatmap(page)
    page.wait_for_timeout(1000)
    assert (read_picture(page).shape[0] == 96) == is_dark


def test_dicom_is_read_and_tells_nothing_of_the_patient(page: Any, tmp_path: Path) -> None:
    (tmp_path / "slice").write_bytes(encode_dicom(draw_phantom()))
    drop(page, tmp_path / "slice")
    wait_for_heatmap(page)
    words = page.inner_text("body").lower()
    assert not [word for word in HIDDEN if word in words]


def test_a_slider_turns_to_another_frame(page: Any, tmp_path: Path) -> None:
    frames = np.stack([draw_phantom(), 255 - draw_phantom()])
    (tmp_path / "two.dcm").write_bytes(encode_dataset(build_dataset(frames, n_frames=2)))
    drop(page, tmp_path / "two.dcm")
    assert "frame 1 of 2" in page.inner_text("#answer h2")
    page.focus("#frame input[type=range]")
    page.keyboard.press("ArrowRight")
    page.fill("#frame input[type=number]", "2")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.wait_for_selector("#answer h2:has-text('frame 2 of 2')")


def test_a_name_cannot_carry_html(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "<img src=x onerror=alert(1)>.png"
    Image.fromarray(draw_phantom()).save(path)
    page.set_input_files("#dropped input[type=file]", str(path))
    page.wait_for_selector("#answer .bar")
    assert page.locator("#answer img").count() == 0


# ---- many files


def test_many_files_make_a_table_to_download(page: Any, phantom: Path, text: Path) -> None:
    page.click("button[role=tab]:has-text('Many files')")
    page.set_input_files("#many input[type=file]", [str(phantom), str(text)])
    page.wait_for_selector("#table tbody tr >> nth=1")
    assert "2 rows" in page.inner_text("#summary")
    with page.expect_download() as waiting:
        page.click("#csv")
    assert waiting.value.suggested_filename == "predictions-research-use-only-phantom.csv"
    table = Path(waiting.value.path()).read_text("utf-8").splitlines()
    assert table[0].startswith("file,predicted,confidence,p_Glioma")
    assert table[1].startswith("phantom.png,")
    assert table[2].startswith("bad.png,,")
    assert "not a JPEG" in table[2]


# ---- the page


def test_a_phone_shows_it_without_scrolling_sideways(
    browser: Any, served: Page, phantom: Path, text: Path
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    visit(page, served)
    drop(page, phantom)
    wait_for_heatmap(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#picture img").bounding_box()["width"] > 250  # not two columns
    page.click("button[role=tab]:has-text('Many files')")
    page.set_input_files("#many input[type=file]", [str(phantom), str(text)])
    page.wait_for_selector("#table tbody tr >> nth=1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_the_notice_stays_on_the_screen(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    wait_for_heatmap(page)
    for place in ("0", "document.body.scrollHeight"):
        page.evaluate(f"window.scrollTo(0, {place})")
        box = page.locator("#notice").bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 901
        words = page.inner_text("#notice")
        assert "not a medical device" in words
        assert "knows no healthy brain: it must name a tumour for any picture" in words


def test_every_control_has_a_name(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    wait_for_heatmap(page)
    nameless = page.evaluate(
        "[...document.querySelectorAll('input:not([type=file]), button, img')].filter("
        "one => one.checkVisibility() && !(one.ariaLabel || one.labels?.length || one.alt ||"
        " one.innerText?.trim() || one.title)).map(one => one.outerHTML.slice(0, 150))"
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out(browser: Any, served: Page, phantom: Path, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    visit(page, served)
    drop(page, phantom)
    ink = page.evaluate(
        "getComputedStyle(document.querySelector('#answer h2')).color.match(/[\\d.]+/g).map(Number)"
    )
    assert np.mean(ink[:3]) < 80 if scheme == "light" else np.mean(ink[:3]) > 180
    page.close()


# ---- nothing from outside, nothing to outside


def test_everything_is_asked_of_this_machine(page: Any, phantom: Path, asked: list[str]) -> None:
    drop(page, phantom)
    wait_for_heatmap(page)
    page.click("button[role=tab]:has-text('Many files')")
    page.set_input_files("#many input[type=file]", [str(phantom)])
    page.wait_for_selector("#table tbody tr")
    assert len(asked) > 10
    assert [
        url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))
    ] == []


def test_the_browser_itself_refuses_what_is_outside(page: Any) -> None:
    blocked = page.evaluate(
        "() => new Promise(done => {"
        "document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));"
        "fetch('http://192.0.2.1/').catch(() => {});})"
    )
    assert blocked.startswith("http://192.0.2.1")


def test_nothing_else_of_the_machine_is_handed_out(served: Page, first_run: Run) -> None:
    checkpoint = (first_run.root / BEST).as_posix()
    parents = f"{served.folder}/../../../../../../.."
    for path in ("/etc/passwd", checkpoint, f"{parents}/etc/passwd", "http://192.0.2.1/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.address}/gradio_api/file={path}")
        assert refused.value.code == 404


def test_headers_are_on_every_answer(served: Page) -> None:
    for path in ("/", "/theme.css", "/config"):
        with urllib.request.urlopen(served.address + path) as answer:
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Cache-Control"] == "no-store"


def test_it_listens_on_this_machine_alone(served: Page) -> None:
    with pytest.raises(ConnectionRefusedError):
        # this machine too, but not that address of it
        socket.create_connection(("127.0.0.2", served.port), timeout=5)


def test_it_writes_nothing_where_it_is_started(served: Page, first_run: Run) -> None:
    assert {path.name for path in first_run.root.iterdir()} == {"data", "results", "session"}


# ---- how it begins and ends


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_it_ends_at_once_and_leaves_no_picture(first_run: Run, name: str) -> None:
    one = start(first_run.root)
    connection = http.client.HTTPConnection("127.0.0.1", one.port)
    connection.request("GET", "/gradio_api/heartbeat/abc")  # what an open page holds on to
    connection.getresponse().read(1)
    (one.folder / "picture").write_bytes(b"x")
    started_s = time.perf_counter()
    one.process.send_signal(getattr(signal, name))
    assert one.process.wait(30) == 0
    assert time.perf_counter() - started_s < 10
    assert end(one) == "ended; the pictures are deleted\n"
    assert not one.folder.exists()


def test_a_port_in_use_is_one_line(
    served: Page, first_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    status = app.main([BEST, "--port", str(served.port)])
    line = expect_refusal(capsys, status)
    assert line == (
        f"error: 127.0.0.1:{served.port} cannot be used (Address already in use); "
        "name another --port or --host"
    )


def test_a_page_for_others_is_warned_of(first_run: Run) -> None:
    one = start(first_run.root, "--host", "0.0.0.0")
    try:
        (warning,) = (line for line in one.said if line.startswith("note: --host"))
        assert "it has no password" in warning
        assert "unencrypted" in warning
    finally:
        end(one)


def test_a_folder_that_is_none_is_one_line(
    first_run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first_run.root)
    status = app.main([BEST, "--port", str(find_port()), "--data", "nowhere"])
    assert "nowhere" in expect_refusal(capsys, status)
    assert "GRADIO_TEMP_DIR" not in os.environ
