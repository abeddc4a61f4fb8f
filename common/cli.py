"""From frozen dataclasses to command-line parsers: the machine behind args.py.

A field states its default, help, choices and range once, through `option` or `argument`. Standard
library only.
"""

import argparse
import dataclasses
import math
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

Config = TypeVar("Config")


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] | None = None,
    low: float | None = None,
    high: float | None = None,
    metavar: str | None = None,
    pattern: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line option `--name-with-dashes`.

    Args:
        default: The value when the option is not given; a bool makes `--name / --no-name`.
        help: One line for `--help`, with the unit where there is one.
        choices: The only values allowed.
        low: Least value allowed, itself included.
        high: Greatest value allowed, itself included.
        metavar: What stands for the value in `--help`.
        pattern: The regular expression of the values allowed.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "metavar": metavar}
    metadata["pattern"] = pattern
    return field(default=default, metadata=metadata)


def argument(help: str, *, metavar: str, optional: bool = False, several: bool = False) -> Any:
    """A dataclass field that is a positional argument.

    Args:
        help: One line for `--help`.
        metavar: What stands for the value in `--help`.
        optional: None when not given.
        several: A tuple of one or more values.
    """
    metadata = {"help": help, "metavar": metavar, "positional": True, "several": several}
    if optional:
        return field(default=None, metadata=metadata)
    return field(metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line and exit status 2.

    Options may stand between positional arguments, as in `predict.py best.pt --out FILE slices/`.
    """

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's own, but for the order."""
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where to read on."""
        line = " ".join(message.splitlines())  # of a value that has several
        self.exit(2, f"error: {self.prog}: {line} (see python {self.prog} --help)\n")


def build_parser(prog: str, arguments: str, description: str, epilog: str) -> OneLineParser:
    """A parser without options, which says for whom the program is at the end of its help."""
    notice = (
        "\n\nResearch use only: not a medical device. The published classes hold no healthy brain."
    )
    return OneLineParser(
        prog=prog,
        usage=f"python {prog} {arguments}",
        description=description,
        epilog=epilog + notice,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the defaults live in the dataclasses alone
        allow_abbrev=False,
    )


def add_options(parser: argparse.ArgumentParser, group: type) -> None:
    """Add every field of a dataclass, under the dataclass's first line as heading."""
    section = parser.add_argument_group((group.__doc__ or "").splitlines()[0].rstrip("."))
    for entry in dataclasses.fields(group):
        meta, kind = entry.metadata, _plain_type(entry.type)
        if meta.get("positional"):
            count: dict[str, Any] = {"nargs": "+"} if meta["several"] else {}
            if entry.default is not dataclasses.MISSING:
                # argparse would convert its own mark for "not given" to the type: None instead
                count = {"nargs": "?", "default": None}
            section.add_argument(
                entry.name, type=kind, metavar=meta["metavar"], help=meta["help"], **count
            )
        elif kind is bool:
            help_line = f"{meta['help']} (default: {'yes' if entry.default else 'no'})"
            action = argparse.BooleanOptionalAction if entry.default else "store_true"
            section.add_argument(name_flag(entry.name), action=action, help=help_line)
        else:
            shown = "" if entry.default is None else f" (default: {entry.default})"
            section.add_argument(
                name_flag(entry.name),
                type=_checked(kind, meta["low"], meta["high"], meta["pattern"]),
                choices=meta["choices"],
                metavar=None if meta["choices"] else meta["metavar"] or "X",
                help=meta["help"].replace("%", "%%") + shown,
            )


def _checked(
    kind: type, low: float | None, high: float | None, pattern: str | None
) -> Callable[[str], Any]:
    """A converter that also checks the range; its name is what argparse calls the value."""

    def convert(text: str) -> Any:
        value = kind(text)
        if pattern is not None and not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form that --help shows")
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is no finite number")
        if low is not None and value < low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}, the least allowed")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text} is more than {high}, the most allowed")
        return value

    convert.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)
    return convert


def fill_dataclass(group: Callable[..., Config], given: dict[str, Any]) -> Config:
    """The dataclass filled with what was given; the rest are its defaults."""
    names = {entry.name for entry in dataclasses.fields(group)}  # type: ignore[arg-type]
    return group(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if name in names
        }
    )


def restore_dataclass(group: Callable[..., Config], values: dict[str, Any]) -> Config:
    """The dataclass of plain values, with text as paths again where a path is wanted.

    Raises:
        ValueError: One is not of its kind, or out of its range.
        TypeError: One is of no such field.
    """
    restored = dict(values)
    for entry in dataclasses.fields(group):  # type: ignore[arg-type]
        if entry.name in values:
            restored[entry.name] = _restore(entry, values[entry.name])
    return group(**restored)


def _restore(entry: dataclasses.Field, value: Any) -> Any:
    kind: Any = _plain_type(entry.type)
    meta = entry.metadata
    if value is None and entry.default is None:
        return None
    wanted = {float: (int, float), Path: (str,)}.get(kind, (kind,))
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{entry.name} should be of type {kind.__name__}, and is {str(value)[:40]!r}"
        )
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"{entry.name} should be one of {', '.join(meta['choices'])}")
    if kind in {int, float, str}:
        try:
            _checked(kind, meta["low"], meta["high"], meta["pattern"])(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{entry.name}: {error}") from error
    return Path(value) if kind is Path else value


def _plain_type(annotation: Any) -> type:
    """`int` for `int | None` and for `tuple[int, ...]`, and the type itself otherwise."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def name_flag(name: str) -> str:
    """`--image-size` for the field `image_size`."""
    return "--" + name.replace("_", "-")


def simplify(value: Any) -> Any:
    """Paths as text, all the way down."""
    if isinstance(value, dict):
        return {key: simplify(part) for key, part in value.items()}
    return str(value) if isinstance(value, Path) else value
