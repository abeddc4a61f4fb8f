"""Names and quoting that hold on every system."""

import re
import shlex
from pathlib import Path, PureWindowsPath

import pytest

from common.cli import simplify
from common.portable_names import PLAIN_NAME, find_fault, make_portable, quote


@pytest.mark.parametrize(
    ("name", "portable"),
    [
        ("a:b.png", "a_b.png"),
        ('<>"|?*\\.x', "_______.x"),
        ("a\x1f\n.png", "a__.png"),
        ("a..", "a._"),
        ("a ", "a_"),
        ("con", "_con"),
        ("NUL.tar.gz", "_NUL.tar.gz"),
        ("Com1 .png", "_Com1 .png"),
        ("lpt³", "_lpt³"),
    ],
)
def test_names_that_windows_refuses(name: str, portable: str) -> None:
    assert find_fault(name) != ""
    assert make_portable(name) == portable
    assert find_fault(portable) == ""


def test_other_names_stay() -> None:
    for name in ("console.txt", "com.png", "com10", "a.b", ".a", "é=#&'.png", "aux-1", "a b"):
        assert find_fault(name) == ""
        assert make_portable(name) == name


def test_run_names() -> None:
    for name in ("run", "a", "resnet18-20260101-120000", "1.5+x y", "console", "é"):
        assert re.fullmatch(PLAIN_NAME, name), name
    for name in ("", "run.", "run ", "con", "NUL.1", "a/b", "a:b", ".a", "-a", "com1"):
        assert not re.fullmatch(PLAIN_NAME, name), name


@pytest.mark.parametrize(
    "text", ["a b", "it's", 'a"b', "a$b", "a`b", "a\\", "a,b", "a!b", "a\\b c"]
)
def test_quoted_paths_are_read_back(text: str) -> None:
    assert shlex.split(quote(Path(text))) == [text]
    if not set(text) & set('"$`!') and not text.endswith("\\"):
        assert quote(Path(text)) == f'"{text}"'


def test_plain_paths_are_not_quoted() -> None:
    assert quote(Path("data/ä_1.5-x")) == "data/ä_1.5-x"


def test_stored_paths_are_read_on_every_system() -> None:
    stored = simplify({"data": PureWindowsPath("C:\\data\\x"), "more": {"out": Path("a/b")}})
    assert stored == {"data": "C:/data/x", "more": {"out": "a/b"}}
