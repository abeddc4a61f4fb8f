"""File names and quoted paths that work on Linux, macOS and Windows.

Source: Microsoft, Naming Files, Paths, and Namespaces.
"""

import re
import shlex
from pathlib import Path

_FORBIDDEN = r'[<>:"/\\|?*\x00-\x1f]'
_RESERVED = r"(?i:con|prn|aux|nul|(?:com|lpt)[0-9¹²³]) *(?:\.|$)"  # also with any suffix
# A name of letters, digits, `.`, `_`, `+`, `-` and blanks inside.
PLAIN_NAME = rf"(?!{_RESERVED})\w(?:[\w .+-]*[\w+-])?"


def find_fault(name: str) -> str:
    """Return why Windows does not allow a file or folder name, or "" if it does."""
    if found := re.search(_FORBIDDEN, name):
        return f"contains {found[0]!r}"
    if name[-1:] in {".", " "}:
        return "ends with a dot or blank"
    if re.match(_RESERVED, name):
        return "is the name of a device"
    return ""


def make_portable(name: str) -> str:
    """Return the name with `_` instead of what Windows does not allow: `a:b.` becomes `a_b_`."""
    name = re.sub(rf"{_FORBIDDEN}|[. ]$", "_", name)
    return f"_{name}" if re.match(_RESERVED, name) else name


def quote(path: Path) -> str:
    """Quote a path for a printed command: cmd, PowerShell and POSIX shells know double quotes."""
    text = path.as_posix()
    if re.fullmatch(r"[\w+:./-]+", text):
        return text
    return shlex.quote(text) if re.search(r'["$`!]|\\$', text) else f'"{text}"'
