"""Fonts for class names of any script, and stand-ins where none is installed."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from common import fonts
from explanation.overlay import draw_overlay
from reporting.plots import plot_confusion_matrix, save
from tests.support.builders import Patch

RARE = "\U00016800"  # Bamum: not in the fonts of usual systems


def build_font(path: Path, family: str, letters: str) -> None:
    """Write a font with a black square for each letter."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square, names = pen.glyph(), [".notdef", *(f"g{ord(letter)}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"g{ord(letter)}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: Patch) -> None:
    """One more font, which alone has the letter RARE."""
    build_font(tmp_path / "rare.ttf", "Rare Sans", RARE)
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    manager.addfont(tmp_path / "rare.ttf")


@pytest.fixture(autouse=True)
def _forget_fonts() -> None:
    for function in (
        fonts._find_fallbacks,
        fonts._find_path,
        fonts._load_letters,
        fonts._can_shape,
    ):
        function.cache_clear()


def test_scripts_of_dejavu_sans_need_no_other_font() -> None:
    for name in ("Glioma", "méningiome", "глиома", "γλοίωμα"):
        assert fonts.is_readable(name)
        assert fonts.list_families(name) == ["DejaVu Sans"]
    assert fonts.describe_names(["Glioma", "глиома"]) == []


@pytest.mark.usefixtures("installed")
def test_an_installed_font_covers_what_dejavu_sans_lacks(tmp_path: Path) -> None:
    assert fonts.is_readable(f"a{RARE}")
    assert fonts.list_families(f"a{RARE}") == ["DejaVu Sans", "Rare Sans"]
    assert fonts.choose_names([f"a{RARE}"]) == {f"a{RARE}": f"a{RARE}"}
    sheet = Image.new("L", (60, 30))
    fonts.draw_text(ImageDraw.Draw(sheet), (0, 0), RARE, 20, 255)
    assert (np.asarray(sheet) == 255).sum() > 250  # the square, not an outline
    with warnings.catch_warnings(), fonts.use_fonts(RARE):
        warnings.simplefilter("error")
        save(plot_confusion_matrix(np.eye(2, dtype=int), [RARE, "b"]), tmp_path / "plot.png")


def test_unreadable_names_get_a_stand_in_and_one_note(tmp_path: Path) -> None:
    classes = ["A", f"{RARE} x", "C", RARE]
    assert not fonts.is_readable(RARE)
    names = fonts.choose_names(classes)
    assert list(names.values()) == ["A", "class 2", "C", "class 4"]
    [note] = fonts.describe_names(classes)
    assert f"class 2 is {RARE} x, class 4 is {RARE}" in note
    with warnings.catch_warnings(), fonts.use_fonts(RARE):  # a file name in a caption
        warnings.filterwarnings("error", message="No warning of a glyph must come through")
        save(plot_confusion_matrix(np.eye(2, dtype=int), [RARE, "b"]), tmp_path / "plot.png")
    overlay = draw_overlay(np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32), [RARE, "a"])
    assert np.asarray(overlay).max() == 255


def test_letters_that_are_joined_need_a_library_for_it(monkeypatch: Patch) -> None:
    monkeypatch.setattr(fonts, "_can_shape", lambda: False)
    assert not fonts.is_readable("ورم")
    assert fonts.is_readable("глиома")
    monkeypatch.setattr(fonts, "_can_shape", lambda: True)
    assert fonts.is_readable("ورم")


def test_ascii_is_drawn_by_pillow_s_own_font() -> None:
    assert fonts._split_by_font("Glioma 12 %") == [("", "Glioma 12 %")]
    [(path, text)] = fonts._split_by_font("é b")
    assert (Path(path).name, text) == ("DejaVuSans.ttf", "é b")
