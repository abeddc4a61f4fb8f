"""Build command-line parsers from frozen dataclasses.

A field states its default, help, choices and range once, through `option` or `argument`.
"""

import argparse
import dataclasses
import io
import math
import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path, PurePath
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin

from helper import NOTICE

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
    """Return a dataclass field that is also a command-line option `--name-with-dashes`.

    An option of a tuple can be given several times, also as `--name A=1 B=2`.

    Args:
        default: Value when the option is not given; a bool gives `--name`, and `--no-name` if True.
        help: One line for `--help`, with the unit.
        choices: The allowed values.
        low: Smallest allowed value, inclusive.
        high: Largest allowed value, inclusive.
        metavar: Placeholder of the value in `--help`.
        pattern: Regular expression that the value must match.
    """
    limits = {"choices": choices, "low": low, "high": high, "pattern": pattern}
    return field(default=default, metadata={"help": help, "metavar": metavar, **limits})


def argument(help: str, *, metavar: str, optional: bool = False, several: bool = False) -> Any:
    """Return a dataclass field that is a positional argument.

    Args:
        help: One line for `--help`.
        metavar: Placeholder of the value in `--help`.
        optional: Allow it to be left out; the value is then None.
        several: Accept one or more values and store them as a tuple.
    """
    metadata = {"help": help, "metavar": metavar, "positional": True, "several": several}
    if optional:
        return field(default=None, metadata=metadata)
    return field(metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line and exits with status 2.

    Options may stand between positional arguments, as in `predict.py best.pt --out FILE slices/`.
    """

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse options and positional arguments in any order.

        The first act of every command. Characters that the console cannot show are escaped from
        now on: otherwise a file name in a message would end the program, or lose the message.
        """
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        argv = sys.argv[1:] if args is None else args
        return self.parse_intermixed_args(self._repeat_flags(argv), namespace)

    def _repeat_flags(self, argv: Sequence[str]) -> list[str]:
        """Write `--name A=1 B=2` as `--name A=1 --name B=2`.

        With `nargs`, argparse would also take a positional argument that follows.
        """
        repeatable = {
            flag
            for action in self._actions
            if isinstance(action, argparse._AppendAction)
            for flag in action.option_strings
        }
        written: list[str] = []
        flag = ""
        for part in argv:
            if part in repeatable:
                flag = part
            elif not flag or "=" not in part or part.startswith("-"):
                flag = ""
            elif written[-1] != flag:
                written.append(flag)
            written.append(part)
        return written

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        line = " ".join(message.splitlines())  # a rejected value may contain line breaks
        self.exit(2, f"error: {self.prog}: {line} (see python {self.prog} --help)\n")


def build_parser(prog: str, arguments: str, description: str, epilog: str) -> OneLineParser:
    """Return a parser without options; its help ends with the research-use notice."""
    return OneLineParser(
        prog=prog,
        usage=f"python {prog} {arguments}",
        description=description,
        epilog=f"{epilog}\n\n{NOTICE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the dataclasses hold the defaults
        allow_abbrev=False,
    )


def add_options(parser: argparse.ArgumentParser, group: type) -> None:
    """Add the fields of a dataclass, without inherited ones, under a heading: its docstring.

    A field that is a tuple is an option that may be repeated.
    """
    section = parser.add_argument_group((group.__doc__ or "").splitlines()[0].rstrip("."))
    for entry in dataclasses.fields(group):
        if entry.name not in group.__annotations__:
            continue
        meta, kind = entry.metadata, _plain_type(entry.type)
        if meta.get("positional"):
            count: dict[str, Any] = {"nargs": "+"} if meta["several"] else {}
            if entry.default is not dataclasses.MISSING:
                # with SUPPRESS, argparse would convert its marker for "not given" to the type
                count = {"nargs": "?", "default": None}
            section.add_argument(
                entry.name, type=kind, metavar=meta["metavar"], help=meta["help"], **count
            )
        elif kind is bool:
            help_line = f"{meta['help']} (default: {'yes' if entry.default else 'no'})"
            action = argparse.BooleanOptionalAction if entry.default else "store_true"
            section.add_argument(name_flag(entry.name), action=action, help=help_line)
        else:
            is_tuple = get_origin(entry.type) is tuple
            has_default = entry.default is not None and not is_tuple
            default = f" (default: {entry.default})" if has_default else ""
            section.add_argument(
                name_flag(entry.name),
                action="append" if is_tuple else "store",
                type=_build_converter(kind, meta),
                choices=meta["choices"],
                metavar=None if meta["choices"] else meta["metavar"] or "X",
                help=meta["help"].replace("%", "%%") + default,
            )


def _build_converter(kind: type, meta: Any) -> Callable[[str], Any]:
    """Return a converter that checks pattern and range; argparse prints its name in errors."""
    low, high, pattern = meta["low"], meta["high"], meta["pattern"]

    def convert(text: str) -> Any:
        value = kind(text)
        if pattern is not None and not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} does not have the form that --help shows")
        if isinstance(value, float) and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number")
        if low is not None and value < low:
            raise argparse.ArgumentTypeError(f"{text} is below the minimum, {low}")
        if high is not None and value > high:
            raise argparse.ArgumentTypeError(f"{text} is above the maximum, {high}")
        return value

    convert.__name__ = {int: "whole number", float: "number"}.get(kind, kind.__name__)
    return convert


def fill_dataclass(group: Callable[..., Config], given: dict[str, Any]) -> Config:
    """Return the dataclass with the given values; all other fields have their defaults."""
    names = {entry.name for entry in dataclasses.fields(group)}  # type: ignore[arg-type]
    return group(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in given.items()
            if name in names
        }
    )


def restore_dataclass(group: Callable[..., Config], values: dict[str, Any]) -> Config:
    """Invert `simplify(asdict(...))`: return the dataclass, with paths instead of text.

    Raises:
        ValueError: A value has the wrong type or is out of range.
        TypeError: A key is not a field.
    """
    restored = dict(values)
    for entry in dataclasses.fields(group):  # type: ignore[arg-type]
        if entry.name in values:
            restored[entry.name] = _restore(entry, values[entry.name])
    return group(**restored)


def _restore(entry: dataclasses.Field, value: Any) -> Any:
    kind: Any = _plain_type(entry.type)
    choices = entry.metadata["choices"]
    if value is None and entry.default is None:
        return None
    expected = {float: (int, float), Path: (str,)}.get(kind, (kind,))
    if not isinstance(value, expected) or isinstance(value, bool) != (kind is bool):
        raise ValueError(
            f"{entry.name} must be of type {kind.__name__}, but is {str(value)[:40]!r}"
        )
    if choices and value not in choices:
        raise ValueError(f"{entry.name} must be one of {', '.join(choices)}")
    if kind in {int, float, str}:
        try:
            _build_converter(kind, entry.metadata)(str(value))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{entry.name}: {error}") from error
    return Path(value) if kind is Path else value


def _plain_type(annotation: Any) -> type:
    """Return `int` for `int | None` and for `tuple[int, ...]`, else the type itself."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def name_flag(name: str) -> str:
    """Return `--image-size` for the field `image_size`."""
    return "--" + name.replace("_", "-")


def simplify(value: Any) -> Any:
    """Convert every path in a value, also in nested dicts, to text that every system reads."""
    if isinstance(value, dict):
        return {key: simplify(part) for key, part in value.items()}
    return value.as_posix() if isinstance(value, PurePath) else value
