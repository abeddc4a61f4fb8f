"""Options of a command from the config.json of an earlier run.

Options of the command line override those of the file. Where the two contradict each other, the
option of the file is left out.
"""

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from common import run_paths
from common.cli import name_flag, restore_dataclass
from helper import UserError, first_line

Options = dict[str, Any]
# Options that must not be given together, the test, and the line that says so.
Contradiction = tuple[tuple[str, ...], Callable[[Options], bool], str]
NOT_TAKEN = {"name"}  # of a run that exists


def take_options(
    path: Path,
    given: Options,
    groups: Mapping[str, Any],
    contradictions: Sequence[Contradiction],
    dependent: Collection[str] = (),
) -> tuple[Options, list[str]]:
    """Return the options of a file overridden by those of the command line, and lines about them.

    Args:
        path: The config.json of a run, or a part of one written by hand.
        given: Options of the command line.
        groups: Dataclass of each group of options by name.
        contradictions: What must not be given together.
        dependent: Options whose defaults depend on others; they are taken with any value.

    Raises:
        UserError: The file is missing or not JSON, a key is unknown, or a value is invalid.
    """
    options = read_options(path, groups, dependent)
    merged, left_out = merge_options(options, given, contradictions)
    taken = sorted(set(options) - set(given) - set(left_out))
    return merged, list(describe_options(path, merged, taken, left_out))


def read_options(path: Path, groups: Mapping[str, Any], dependent: Collection[str] = ()) -> Options:
    """Read the options in a file that differ from their defaults, see `take_options`."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--config {path}: not JSON ({first_line(error)})") from error
    if not isinstance(values, dict) or not all(isinstance(part, dict) for part in values.values()):
        raise UserError(f"--config {path}: must hold groups of options: {', '.join(groups)}")
    if (path.parent.parent / path.name).is_file():
        raise UserError(
            f"--config {path}: the options of one fold; give {path.parent.parent / path.name}"
        )
    options: Options = {}
    for name, part in values.items():
        if name not in groups:
            raise UserError(f"--config {path}: {_name_unknown(name, name, groups)}")
        defaults = {field.name: field.default for field in fields(groups[name])}
        for key in part:
            if key not in defaults:
                raise UserError(f"--config {path}: {_name_unknown(f'{name}.{key}', key, defaults)}")
        try:
            restored = restore_dataclass(groups[name], part)
        except (ValueError, TypeError) as error:
            raise UserError(f"--config {path}: {name}: {first_line(error)}") from error
        options |= {
            key: _locate(getattr(restored, key), path)
            for key, default in defaults.items()
            if (getattr(restored, key) != default or (key in dependent and key in part))
            and key not in NOT_TAKEN
        }
    return options


def merge_options(
    options: Options, given: Options, contradictions: Sequence[Contradiction]
) -> tuple[Options, list[str]]:
    """Return the options of a file and of the command line, and those that had to be left out.

    Raises:
        UserError: Options of the file contradict each other.
    """
    if found := find_contradiction(options, contradictions):
        raise UserError(f"--config: options of the file contradict each other: {found[1]}")
    kept, left_out = dict(options), []
    while found := find_contradiction({**kept, **given}, contradictions):
        dropped = [name for name in found[0] if name in kept and name not in given]
        if not dropped:
            break  # of the command line alone, which its parser reports
        kept = {name: value for name, value in kept.items() if name not in dropped}
        left_out += dropped
    return {**kept, **given}, left_out


def find_contradiction(
    given: Options, contradictions: Sequence[Contradiction]
) -> tuple[tuple[str, ...], str] | None:
    """Return names and line of the first contradiction, or None."""
    for names, is_wrong, line in contradictions:
        if is_wrong(given):
            return names, line
    return None


def describe_options(
    path: Path, merged: Options, taken: Sequence[str], left_out: Sequence[str]
) -> Iterator[str]:
    """Yield lines that tell which options and paths are those of a file."""
    shown = ", ".join(_show(name, merged[name]) for name in taken)
    yield f"options of {path}: {shown or 'the defaults'}"
    if left_out:
        flags = ", ".join(map(name_flag, left_out))
        yield f"not taken from {path}, because the command line contradicts: {flags}"
    for name in taken:
        value = merged[name]
        if isinstance(value, Path) and not value.is_absolute():
            yield f"{name_flag(name)} {value} is relative to the current folder, {Path.cwd()}"


def _show(name: str, value: Any) -> str:
    """Return an option as it would be typed."""
    if isinstance(value, bool):
        return name_flag(name) if value else f"--no-{name_flag(name)[2:]}"
    return f"{name_flag(name)} {value}"


def _locate(value: Any, path: Path) -> Any:
    """Return a path of a run as it is found from the current folder; other values unchanged."""
    return run_paths.locate(value, path) if isinstance(value, Path) else value


def _name_unknown(shown: str, key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"{shown}: no such option; {advice}"
