"""report.html in a browser: nothing overflows, no image is broken, light and dark."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reporting.plots import get_palette
from tests.support.builders import Run

MEASURE = """() => {
  const inScroll = element => element.closest(".scroll") !== null;
  const wide = [...document.body.querySelectorAll("*")].filter(
    element => !inScroll(element) && element.getBoundingClientRect().right > innerWidth + 1);
  const images = [...document.images];
  return {
    scrolls: document.documentElement.scrollWidth,
    wide: wide.map(element => element.outerHTML.slice(0, 80)),
    images: images.length,
    broken: images.filter(image => !image.complete || image.naturalWidth === 0).length,
    without_alt: images.filter(image => !image.alt.trim()).length,
    text: getComputedStyle(document.body).color,
    background: getComputedStyle(document.body).backgroundColor,
    fetched: performance.getEntriesByType("resource")
      .filter(entry => !entry.name.startsWith("data:")).length,
  };
}"""


def measure(browser: Any, page: Path, width_px: int, scheme: str = "light") -> dict[str, Any]:
    """Render a page in a window of that width and return what MEASURE finds."""
    shown = browser.new_page(viewport={"width": width_px, "height": 900}, color_scheme=scheme)
    shown.goto(page.as_uri())
    found = shown.evaluate(MEASURE)
    shown.close()
    return found


def read_rgb(text: str) -> np.ndarray:
    return np.array([float(part) for part in text.partition("(")[2].rstrip(")").split(",")[:3]])


@pytest.mark.browser
@pytest.mark.integration
@pytest.mark.parametrize("width_px", [390, 820, 1280])
def test_the_report_fits_its_window(browser: Any, first_run: Run, width_px: int) -> None:
    found = measure(browser, first_run.root / "results/first/report.html", width_px)
    assert found["scrolls"] <= width_px
    assert found["wide"] == []
    assert found["images"] >= 7
    assert (found["broken"], found["without_alt"], found["fetched"]) == (0, 0, 0)


@pytest.mark.browser
@pytest.mark.integration
def test_the_report_has_a_dark_mode(browser: Any, first_run: Run) -> None:
    page = first_run.root / "results/first/report.html"
    light, dark = (measure(browser, page, 820, scheme) for scheme in ("light", "dark"))
    assert read_rgb(light["background"]).mean() > 200 > 60 > read_rgb(light["text"]).mean()
    assert read_rgb(dark["background"]).mean() < 60 < 200 < read_rgb(dark["text"]).mean()


# Linear RGB as seen without one kind of cone.
# Source: Machado et al. 2009, A physiologically-based model for simulation of color vision
# deficiency.
BLIND = {
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_colours_of_three_classes_differ_for_colour_blind_users(kind: str) -> None:
    colors = np.array(get_palette(3))
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = linear @ np.array(BLIND[kind]).T
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(seen[first] - seen[second]) > 0.1
