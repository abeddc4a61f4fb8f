"""Fonts for text of any script: which installed ones cover it, and stand-ins where none does.

DejaVu Sans comes with matplotlib and is tried first. No font is downloaded or bundled.
"""

import contextlib
import functools
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import ImageDraw

BASE = "DejaVu Sans"
PLACEHOLDERS = "Last Resort"  # fonts of boxes that name the block of a character
# without shaping, letters of these scripts stand alone or in reverse order, though a font has them
SHAPED = (
    *("ARABIC", "HEBREW", "SYRIAC", "THAANA", "NKO", "DEVANAGARI", "BENGALI", "TAMIL", "TELUGU"),
    *("GUJARATI", "GURMUKHI", "KANNADA", "MALAYALAM", "SINHALA", "ORIYA", "KHMER", "MYANMAR"),
    *("TIBETAN", "MONGOLIAN", "THAI", "LAO"),
)


def list_families(text: str) -> list[str]:
    """Return matplotlib's font families that show a text, DejaVu Sans first."""
    return [BASE, *_find_fallbacks(_find_missing(text))]


def is_readable(text: str) -> bool:
    """Return whether installed fonts have all characters of a text and can arrange them."""
    if not _can_shape() and any(_needs_shaping(letter) for letter in text):
        return False
    missing = _find_missing(text)
    return all(
        any(letter in _load_letters(_find_path(family)) for family in _find_fallbacks(missing))
        for letter in missing
    )


def choose_names(classes: Sequence[str]) -> dict[str, str]:
    """Return how each class is called in pictures: by its name, or `class 2` if it is unreadable.

    A stand-in is the place of the class in the given order, from 1.
    """
    return {
        name: name if is_readable(name) else f"class {number}"
        for number, name in enumerate(classes, 1)
    }


def describe_names(classes: Sequence[str]) -> list[str]:
    """Return one note that names the unreadable classes and their stand-ins; none without."""
    unreadable = {old: new for old, new in choose_names(classes).items() if old != new}
    if not unreadable:
        return []
    pairs = ", ".join(f"{new} is {old}" for old, new in unreadable.items())
    return [
        f"pictures: no installed font shows these class names, so plots and heat maps have a "
        f"stand-in: {pairs}; install a font of that script, such as Noto Sans, for the names"
    ]


@contextlib.contextmanager
def use_fonts(text: str) -> Iterator[None]:
    """Let matplotlib draw a text in fonts that have its characters; others become boxes."""
    import matplotlib

    with matplotlib.rc_context({"font.family": list_families(text)}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ", category=UserWarning)
        yield


def draw_text(
    draw: "ImageDraw.ImageDraw", place: tuple[float, float], text: str, size_px: int, fill: Any
) -> None:
    """Draw a line with Pillow, each part in a font that has its characters.

    Pillow's own font draws ASCII.

    Args:
        draw: Drawing context.
        place: Left and top of the line, px.
        text: One line.
        size_px: Size of the font.
        fill: Colour.
    """
    from PIL import ImageFont

    left, top = place
    for path, part in _split_by_font(text):
        font: Any = ImageFont.load_default(size=size_px)
        if path:
            font = ImageFont.truetype(path, size_px)
        draw.text((left, top), part, fill, font)
        left += font.getlength(part)


def _split_by_font(text: str) -> list[tuple[str, str]]:
    """Return the parts of a text with the file of their font, "" for ASCII alone."""
    if text.isascii():
        return [("", text)]
    paths = [_find_path(family) for family in list_families(text)]
    parts: list[tuple[str, str]] = []
    for letter in text:
        path = next((path for path in paths if ord(letter) in _load_letters(path)), paths[0])
        if parts and (parts[-1][0] == path or letter == " "):
            parts[-1] = (parts[-1][0], parts[-1][1] + letter)
        else:
            parts.append((path, letter))
    return parts


def _find_missing(text: str) -> frozenset[int]:
    """Return the characters that DejaVu Sans lacks; line breaks and the like need no glyph."""
    shown = {ord(letter) for letter in text if unicodedata.category(letter)[0] != "C"}
    return frozenset(shown - _load_letters(_find_path(BASE)))


@functools.cache
def _find_fallbacks(missing: frozenset[int]) -> tuple[str, ...]:
    """Return the families that cover most of the characters, one after the other."""
    if not missing:
        return ()
    from matplotlib.font_manager import fontManager

    upright = {
        font.name: font.fname
        for font in sorted(fontManager.ttflist, key=lambda font: (font.name, font.fname))
        if font.style == "normal" and font.name != BASE and not font.name.startswith(PLACEHOLDERS)
    }
    # only the fonts that have one of the characters; plain sans-serif ones win a tie
    found = {name: missing & _load_letters(path) for name, path in upright.items()}
    names = sorted(filter(found.get, found), key=lambda name: ("Sans" not in name, name))
    chosen: list[str] = []
    left = set(missing)
    while left and names:
        best = max(names, key=lambda name: len(found[name] & left))
        if not found[best] & left:
            break
        chosen.append(best)
        left -= found[best]
    return tuple(chosen)


@functools.cache
def _find_path(family: str) -> str:
    """Return the font file of a family."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, fontManager

    if family == BASE:
        return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return str(fontManager.findfont(FontProperties(family=[family])))


@functools.cache
def _load_letters(path: str) -> frozenset[int]:
    """Return the characters of a font file, none if it is damaged."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _needs_shaping(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(SHAPED)


@functools.cache
def _can_shape() -> bool:
    """Return whether both matplotlib and Pillow arrange the letters of complex scripts."""
    from matplotlib import ft2font
    from PIL import features

    return hasattr(ft2font, "__libraqm_version__") and bool(features.check("raqm"))


def collect(*texts: Iterable[str]) -> str:
    """Return the distinct characters of many texts."""
    return "".join(sorted({letter for several in texts for text in several for letter in text}))
