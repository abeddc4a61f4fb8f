"""app.py in a real browser: drop, answer, heat map, bad file, many files, nothing from outside."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Run
from PIL import Image

from helper import PROJECT_DIR
from imaging.phantom import plan_phantoms, render_phantom
from studies.strangers import draw_text_scan

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


def find_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def address(first_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the run `first`, in a process of its own."""
    port, kept = find_port(), tmp_path_factory.mktemp("kept")
    command = [sys.executable, str(PROJECT_DIR / "app.py"), "session/first/best.pt"]
    with subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        cwd=first_run.root,
        env={**os.environ, "TMPDIR": str(kept)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("open http://"):
                break
        else:
            pytest.fail("the page did not start")
        url = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                urllib.request.urlopen(url)
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        assert list(kept.iterdir())
        yield url
        process.terminate()
        process.wait(20)
        assert not list(kept.iterdir())  # what was dropped is gone, whatever ended the page


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
def page(browser: Any, address: str, asked: list[str]) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.wait_for_selector("#dropped input[type=file]", state="attached")
    yield opened
    opened.close()


@pytest.fixture
def phantom(tmp_path: Path) -> Path:
    path = tmp_path / "phantom.png"
    Image.fromarray(render_phantom(plan_phantoms(6, 5)[0])[0]).save(path)
    return path


def drop(page: Any, path: Path, where: str = "#dropped") -> None:
    page.set_input_files(f"{where} input[type=file]", str(path))


def read_picture(page: Any) -> bytes:
    source = page.get_attribute("#picture img", "src")
    return bytes(page.request.get(source).body())


def test_a_slice_is_answered_within_two_seconds(page: Any, phantom: Path, asked: list[str]) -> None:
    drop(page, phantom)  # the first drop of a page also fetches parts of its script
    page.wait_for_selector("#answer .bar")
    page.reload()
    page.wait_for_selector("#dropped input[type=file]", state="attached")
    started_s = time.perf_counter()
    drop(page, phantom)
    page.wait_for_selector("#answer .bar")
    assert time.perf_counter() - started_s < 2
    words = page.inner_text("#answer")
    assert all(name in words for name in ("Glioma", "Menin", "Tumor"))
    assert "knows no healthy brain" in words
    assert "not a medical device" in page.inner_text("#top")
    assert "PHANTOM" in page.inner_text("#top")
    page.wait_for_selector("#picture img")
    assert all(re.match(r"(http://127\.0\.0\.1:|data:|blob:)", url) for url in asked), asked


def test_the_heat_map_comes_and_its_strength_can_be_changed(page: Any, phantom: Path) -> None:
    drop(page, phantom)
    page.wait_for_selector("#picture img")

    def has_colour() -> bool:
        pixels = np.asarray(Image.open(io.BytesIO(read_picture(page))).convert("RGB"), dtype=int)
        return bool(np.ptp(pixels, axis=2).max() > 20)

    wait_for(has_colour)
    page.fill("#strength input[type=number]", "0")
    page.keyboard.press("Tab")
    wait_for(lambda: not has_colour())


def wait_for(condition: Any) -> None:
    for _ in range(100):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited for ten seconds")


def test_a_bad_file_is_one_line_and_the_page_goes_on(
    page: Any, phantom: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("this is text")
    drop(page, bad)
    page.wait_for_selector("#answer .box.bad")
    words = page.inner_text("#answer")
    assert "cannot be read" in words
    assert "not a JPEG" in words
    assert "Traceback" not in page.content()
    page.click("#dropped button[aria-label=Clear]")
    page.wait_for_selector("#answer .box.bad", state="detached")
    page.wait_for_selector("#dropped input[type=file]", state="attached")
    drop(page, phantom)
    page.wait_for_selector("#answer .bar")


def test_many_files_make_a_table_to_download(page: Any, phantom: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("this is text")
    page.click("button[role=tab]:has-text('Many files')")
    page.set_input_files("#many input[type=file]", [str(phantom), str(bad)])
    page.wait_for_selector("#csv a[href]")
    with page.expect_download() as waiting:
        page.click("#csv a[href]")
    table = Path(waiting.value.path()).read_text("utf-8").splitlines()
    assert table[0].startswith("file,predicted,confidence,p_Glioma")
    assert table[1].startswith("phantom.png,")
    assert table[2].startswith("bad.png,,")
    assert "not a JPEG" in table[2]


def test_dicom_is_read(page: Any, tmp_path: Path) -> None:
    from fixtures_dicom import encode_dicom

    path = tmp_path / "slice.dcm"
    path.write_bytes(encode_dicom(render_phantom(plan_phantoms(6, 5)[0])[0]))
    drop(page, path)
    page.wait_for_selector("#answer .bar")


def test_a_phone_shows_it_without_scrolling_sideways(
    browser: Any, address: str, phantom: Path
) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.wait_for_selector("#dropped input[type=file]", state="attached")
    drop(page, phantom)
    page.wait_for_selector("#answer .bar")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_nothing_else_of_the_machine_is_handed_out(address: str, first_run: Run) -> None:
    checkpoint = (first_run.root / "session/first/best.pt").as_posix()
    for path in ("/etc/passwd", checkpoint):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/gradio_api/file={path}")
        assert refused.value.code in {403, 404}
    with urllib.request.urlopen(address) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_a_text_scan_is_answered_too(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    Image.fromarray(draw_text_scan(0)).save(path)
    drop(page, path)
    page.wait_for_selector("#answer .bar")
