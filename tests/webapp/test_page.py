"""The page in a browser: drop, list, slice, heat map, table, keys; nothing from elsewhere."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.dicom_files import encode_dicom
from tests.support.page_server import Page

pytestmark = [pytest.mark.browser, pytest.mark.integration, pytest.mark.timeout(180)]
WAIT_MS = 30_000


@pytest.fixture
def open_page(browser: Any, served: Page) -> Iterator[Callable[..., Any]]:
    """Open the page at a width; no test may leave an unexpected error or a request elsewhere."""
    faults: list[str] = []
    expected: list[str] = []
    pages = []

    def visit(width: int = 1280, error: str = "") -> Any:
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda line: faults.extend([line.text] * (line.type == "error")))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: faults.append(f"asked {asked.url}"))
        page.goto(served.url)
        page.wait_for_selector("#target option", state="attached")
        pages.append(page)
        expected.extend([error] if error else [])
        return page

    yield visit
    for page in pages:
        page.close()
    local = [f"asked {start}" for start in (served.url, "data:", "blob:")]
    unexpected = [
        fault
        for fault in faults
        if not fault.startswith(tuple(local)) and not any(part in fault for part in expected)
    ]
    assert unexpected == []


def drop(page: Any, *paths: Path) -> None:
    """Choose files and wait for all results and the heat map of the first."""
    page.set_input_files("#files", [str(path) for path in paths])
    page.wait_for_selector("#actions button:visible", timeout=WAIT_MS)


def wait_for_heatmap(page: Any, class_name: str = "") -> None:
    text = page.locator("#legend", has_text=re.compile(f"score of {class_name}"))
    text.wait_for(timeout=WAIT_MS)


def count_coloured(page: Any) -> int:
    """Return how many pixels of the canvas are not grey."""
    page.wait_for_timeout(100)  # for the next frame
    content = page.locator("#canvas").screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)
    return int((np.ptp(pixels, axis=2) > 24).sum())


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "bad.png"
    path.write_text("this is text")
    return path


def test_a_slice_is_predicted_and_explained(open_page: Any, phantom: Path) -> None:
    page = open_page()
    assert "PHANTOM" in page.inner_text("#warnings")
    assert "not a medical device" in page.inner_text("header")
    drop(page, phantom)
    assert page.inner_text("#name") == "phantom.png"
    assert page.locator("#bars .bar").count() == 3
    page.locator("#nearest img").nth(4).wait_for()
    wait_for_heatmap(page)
    assert count_coloured(page) > 50
    page.focus("#canvas")
    page.keyboard.press("h")
    assert count_coloured(page) == 0
    page.keyboard.press("h")
    shown = page.input_value("#target")
    other = next(name for name in ("Glioma", "Menin") if name != shown)
    page.select_option("#target", other)
    wait_for_heatmap(page, other)


def test_window_zoom_and_reset(open_page: Any, phantom: Path) -> None:
    page = open_page()
    drop(page, phantom)
    wait_for_heatmap(page)
    page.fill("#opacity", "0")
    before = page.locator("#canvas").screenshot()
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 40, box["y"] + 140)
    page.mouse.up()
    assert int(page.input_value("#level")) == 128 - 40
    assert int(page.input_value("#width")) == 255 - 120
    page.focus("#canvas")
    page.keyboard.press("+")
    page.wait_for_timeout(100)
    assert page.locator("#canvas").screenshot() != before
    page.click("#reset")
    page.wait_for_timeout(100)
    assert page.locator("#canvas").screenshot() == before


def test_results_to_look_at_come_first(open_page: Any, phantom: Path, bad_file: Path) -> None:
    page = open_page()
    drop(page, phantom, bad_file)
    items = page.locator("#list li").all_inner_texts()
    assert "bad.png" in items[0]
    assert "unreadable" in items[0]
    assert "phantom.png" in items[1]
    assert page.inner_text("#name") == "phantom.png"  # the first that can be shown
    page.focus("#list")
    page.keyboard.press("ArrowUp")
    assert page.inner_text("#name") == "bad.png"
    assert "not a JPEG" in page.inner_text("#answer")
    assert not page.is_visible("#canvas")
    with page.expect_download() as waiting:
        page.click("#csv")
    head, *lines = Path(waiting.value.path()).read_text("utf-8").splitlines()
    assert head.startswith("file,patient,predicted,confidence,p_Glioma")
    assert lines[0].startswith("bad.png,,,")
    drop(page, phantom)
    assert page.locator("#list li").count() == 1  # the earlier results are gone


def test_frames_are_scrolled(open_page: Any, phantom: Path, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(phantom))
    path = tmp_path / "two.dcm"
    path.write_bytes(encode_dicom(np.stack([pixels, pixels]), n_frames=2))
    page = open_page()
    drop(page, path)
    items = page.locator("#list li").all_inner_texts()
    assert sum("two.dcm#" in item for item in items) >= 2
    assert any("#patient" in item for item in items)
    page.hover("#canvas")
    first = page.inner_text("#name")
    page.mouse.wheel(0, 100)
    page.locator("#name", has_not_text=first).wait_for()


def answer(page: Any, *results: dict[str, Any]) -> list[Any]:
    """Answer /predict with results that have a tiny picture; return the requests."""
    content = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(content, "PNG")
    usual = {
        **{"kind": "slice", "predicted": "Menin", "confidence": 0.9, "probabilities": {}},
        **{"needs_review": False, "out_of_distribution": False, "nearest": [], "review": ""},
        "picture": base64.b64encode(content.getvalue()).decode(),
    }
    asked: list[Any] = []

    def fulfill(route: Any) -> None:
        asked.append(route.request)
        lines = [json.dumps({**usual, **each}) + "\n" for each in results]
        route.fulfill(body="".join(lines))

    page.route("**/predict", fulfill)
    return asked


def test_what_was_not_checked_has_no_tick(open_page: Any, phantom: Path) -> None:
    page = open_page()
    answer(
        page,
        {"file": "a.png", "needs_review": None},
        {"file": "b.png", "out_of_distribution": None},
        {"file": "c.png"},
        {"file": "d.png", "out_of_distribution": True, "needs_review": True},
    )
    drop(page, phantom)
    items = page.locator("#list li").all_inner_texts()
    assert [item.split()[0] for item in items] == ["✕", "?", "?", "✓"]
    assert "out of distribution" in items[0]
    assert "not checked in full" in items[1]
    status = page.inner_text("#status")
    assert "0 need review; 1 out of distribution; 2 not checked in full" in status
    page.click("#list li:nth-child(3)")
    assert "like those of training was not fitted" in page.inner_text("#review")


def test_slices_are_turned_in_the_order_of_the_files(open_page: Any, phantom: Path) -> None:
    page = open_page()
    flags = (False, True, False)
    names = ("1.png", "2.png", "3.png")
    answer(
        page,
        *({"file": name, "needs_review": flag} for name, flag in zip(names, flags, strict=True)),
        {"kind": "patient", "file": "p#patient", "picture": None},
    )
    drop(page, phantom)
    page.click("#list li:has-text('1.png')")
    page.focus("#canvas")
    seen = []
    for _ in range(4):
        seen.append(page.inner_text("#name"))
        page.keyboard.press("ArrowDown")
    assert seen == [*names, "3.png"]  # the row of the patient has no picture
    assert page.inner_text("#position") == "Slice 3 of 3"
    assert page.evaluate("document.activeElement.id") == "canvas"


def test_turning_pages_asks_for_few_heat_maps(open_page: Any, phantom: Path) -> None:
    page = open_page()
    answer(page, *({"file": f"{number}.png"} for number in range(20)))
    drop(page, phantom)
    wait_for_heatmap(page)
    asked: list[Any] = []
    page.on("request", lambda request: asked.extend(["heatmap"] * ("/heatmap" in request.url)))
    with page.expect_request("**/heatmap"):
        page.evaluate(  # at once, as from a key that is held
            "() => { for (let i = 0; i < 15; i++) document.querySelector('#canvas').dispatchEvent("
            "new KeyboardEvent('keydown', {key: 'ArrowDown'})); }"
        )
    wait_for_heatmap(page)
    assert page.inner_text("#name") == "15.png"
    assert len(asked) == 1


def test_clear_keeps_the_page_usable(open_page: Any, phantom: Path) -> None:
    page = open_page()
    drop(page, phantom)
    page.click("#clear")
    assert page.evaluate("document.activeElement.id") == "files"
    assert page.locator("#list li").count() == 0
    assert not page.is_visible("#view")
    assert not page.is_visible("#actions")
    drop(page, phantom)
    assert page.locator("#list li").count() == 1


def test_large_drops_are_divided_without_means(
    open_page: Any, phantom: Path, tmp_path: Path
) -> None:
    page = open_page()
    asked = answer(page, {"file": "1.png"}, {"kind": "patient", "file": "p#patient"})
    paths = [tmp_path / f"{number}.png" for number in range(1_001)]
    for path in paths:
        path.write_bytes(b"")
    drop(page, *paths)
    assert len(asked) == 2
    assert page.locator("#list li", has_text="patient").count() == 0
    assert "without means over series and patients" in page.inner_text("#status")


def test_what_the_browser_cannot_read_is_counted(open_page: Any) -> None:
    page = open_page()
    asked = answer(page, {"file": "p/1.png"})
    page.evaluate(
        """() => {
          const file = (name) => ({ name, isFile: true, file: (done, fail) =>
            name === "2.png" ? fail(new Error("gone")) : done(new File(["x"], name)) });
          let parts = [[file("1.png"), file("2.png")], []];
          const folder = { name: "p", isFile: false, createReader: () =>
            ({ readEntries: (done) => done(parts.shift()) }) };
          const event = new Event("drop", { cancelable: true });
          event.dataTransfer = { items: [{ webkitGetAsEntry: () => folder }] };
          dispatchEvent(event);
        }"""
    )
    page.wait_for_selector("#actions button:visible", timeout=WAIT_MS)
    assert len(asked) == 1
    assert "1 files or folders could not be read by the browser" in page.inner_text("#status")


def test_shift_and_arrows_pan(open_page: Any, phantom: Path) -> None:
    page = open_page()
    answer(page, {"file": "1.png"})
    drop(page, phantom)
    wait_for_heatmap(page)
    page.focus("#canvas")
    before = page.locator("#canvas").screenshot()
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_timeout(100)
    assert page.locator("#canvas").screenshot() != before


def test_a_choice_is_outlined_at_its_own_button(open_page: Any) -> None:
    page = open_page()
    for name in ("files", "folder"):
        assert page.evaluate(f"document.querySelector('#{name} + label').htmlFor") == name


def test_cells_of_the_table_are_no_formulas(open_page: Any, phantom: Path) -> None:
    page = open_page()
    answer(page, {"file": "=1+1.zip", "error": "=HYPERLINK(1).zip: damaged", "picture": None})
    drop(page, phantom)
    with page.expect_download() as waiting:
        page.click("#csv")
    line = Path(waiting.value.path()).read_text("utf-8").splitlines()[1]
    assert line.startswith("'=1+1.zip,")
    assert line.endswith(",'=HYPERLINK(1).zip: damaged")


def test_a_hundred_files_show_their_progress(open_page: Any, phantom: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"slice_{number:03}.png" for number in range(100)]
    for path in paths:
        path.write_bytes(phantom.read_bytes())
    page = open_page()
    page.evaluate(
        "window.seen = [];"
        "new MutationObserver(() => window.seen.push(document.querySelector('#progress').value))"
        ".observe(document.querySelector('#progress'), {attributes: true, attributeFilter: "
        "['value']})"
    )
    drop(page, *paths)
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert len(set(seen)) > 5  # results arrive in batches
    assert seen[-1] == 100
    shown = page.locator("#list li span:nth-child(2)").all_inner_texts()
    assert shown == [path.name for path in paths]  # none lost, in their order
    assert "100 results" in page.inner_text("#status")


def test_an_error_of_the_program_is_shown(open_page: Any, phantom: Path) -> None:
    page = open_page(error="status of 413")
    page.route("**/predict", lambda route: route.fulfill(status=413, json={"error": "over 1 MiB"}))
    page.set_input_files("#files", str(phantom))
    page.wait_for_selector("#list li")
    page.click("#list li")
    assert "over 1 MiB" in page.inner_text("#answer")


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_it_fits_and_every_control_has_a_name(open_page: Any, phantom: Path, width: int) -> None:
    page = open_page(width)
    drop(page, phantom)
    wait_for_heatmap(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, button, img, canvas, meter, progress')]"
        ".filter(one => !(one.ariaLabel || one.labels?.length || one.alt || one.innerText?.trim()))"
        ".map(one => one.outerHTML.slice(0, 150))"
    )
    assert nameless == []


def test_a_policy_blocks_other_addresses(open_page: Any) -> None:
    page = open_page(error="192.0.2.1")
    blocked = page.evaluate(
        "() => new Promise(done => {"
        "document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));"
        "fetch('http://192.0.2.1/').catch(() => {});})"
    )
    assert blocked.startswith("http://192.0.2.1")
