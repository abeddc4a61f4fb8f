"""Match the class names of other data to those of a model: `--class-map OLD=NEW`.

Nothing is guessed: names that look alike are suggested in the error, as options to copy.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.portable_names import quote
from helper import UserError

APART = "-"  # as NEW: the model lacks the class, and its slices are counted apart
FILLERS = {"class", "type", "mri", "image", "images", "brain"}
TUMOR = {"tumor", "tumors"}
MIN_PREFIX = 5  # letters of a name that begins the other one, as Menin does meningioma


@dataclass(frozen=True)
class ClassNames:
    """How the labels of a data folder are called in a model.

    Attributes:
        by_label: Class of the model by label, for every label that has one.
        renamed: Those of them that `--class-map` names.
        others: Labels whose class the model lacks.
    """

    by_label: dict[str, str]
    renamed: dict[str, str]
    others: list[str]

    def describe(self) -> list[str]:
        """Return a warning that names the renamed classes."""
        pairs = ", ".join(f"{old} as {new}" for old, new in self.renamed.items())
        return [f"CLASS NAMES: by --class-map, {pairs}"] if pairs else []


def match_classes(
    labels: Collection[str], classes: Sequence[str], options: Iterable[str], data_dir: Path
) -> ClassNames:
    """Find the class of the model for each label of a data folder.

    Args:
        labels: The labels of the data.
        classes: Those of the model.
        options: `OLD=NEW` each; NEW is `-` for a class that the model lacks.
        data_dir: The data folder, for errors.

    Raises:
        UserError: An option names an unknown class, a label resembles a class without being it, or
            no label is a class of the model.
    """
    options = list(options)
    given = dict(_parse(each, labels, classes, data_dir) for each in options)
    renamed = {old: new for old, new in given.items() if new != APART}
    by_label = {name: given.get(name, name) for name in sorted(labels)}
    others = [old for old, new in by_label.items() if new not in classes]
    similar = {
        name: found for name in others if name not in given and (found := suggest(name, classes))
    }
    known = f"the model knows {', '.join(classes)}"
    if similar:
        written = [*options, *(f"{old}={new}" for old, new in similar.items())]
        raise UserError(
            f"{data_dir}: {', '.join(similar)} {'is' if len(similar) == 1 else 'are'} not among "
            f"the classes of the model; {known}; if the names mean the same, add "
            f"{format_options(written)} (for a class that the model lacks, write "
            f"{format_options([f'{next(iter(similar))}={APART}'])} instead)"
        )
    if len(others) == len(by_label):
        if all(name in given for name in others):
            raise UserError(
                f"{data_dir}: --class-map sets all of its classes apart, so nothing is left to "
                f"evaluate; {known}"
            )
        raise UserError(
            f"{data_dir}: none of its classes, {', '.join(others)}, is a class of the model; "
            f"{known}; name what they mean, such as "
            f"{format_options([f'{others[0]}={classes[0]}'])}"
        )
    return ClassNames(
        {old: new for old, new in by_label.items() if new in classes}, renamed, others
    )


def suggest(name: str, classes: Iterable[str]) -> str:
    """Return the only class whose name resembles another one; "" for none or several.

    Names are alike if they differ by case, blanks, underscores, hyphens or words such as tumor, or
    if one of them begins the other one.
    """
    keys = _list_keys(name)
    found = [each for each in classes if keys & _list_keys(each)]
    if not found:
        found = [each for each in classes if _begins(keys, _list_keys(each))]
    return found[0] if len(found) == 1 else ""


def format_options(pairs: Iterable[str]) -> str:
    """Return options that can be copied: `--class-map a=b --class-map "c d=e"`."""
    return " ".join(f"--class-map {_quote(pair)}" for pair in pairs)


def _quote(text: str) -> str:
    return text if re.fullmatch(r"\w[\w=.-]*", text) else quote(Path(text))


def _list_keys(name: str) -> set[str]:
    """Return the letters of a name, with and without words that say nothing about the class."""
    plain = unicodedata.normalize("NFKC", name).casefold().replace("tumour", "tumor")
    words = re.findall(r"[^\W_]+", plain)
    short = [word for word in words if word not in FILLERS]
    shorter = [word for word in short if word not in TUMOR]
    return {"".join(several) for several in (words, short, shorter)} - {""}


def _begins(first: set[str], second: set[str]) -> bool:
    return any(
        min(len(one), len(other)) >= MIN_PREFIX and (one.startswith(other) or other.startswith(one))
        for one in first
        for other in second
    )


def _parse(
    option: str, labels: Collection[str], classes: Sequence[str], data_dir: Path
) -> tuple[str, str]:
    """Return label and class of `OLD=NEW`; either name may contain `=`."""
    places = [place for place, letter in enumerate(option) if letter == "="]
    pairs = [(option[:place], option[place + 1 :]) for place in places]
    for old, new in pairs:
        if old in labels and (new in classes or new == APART):
            return old, new
    written = f"--class-map {_quote(option)}"
    for old, new in pairs:
        if old in labels:
            similar = suggest(new, classes)
            hint = f"add {format_options([f'{old}={similar}'])}" if similar else "name one of these"
            raise UserError(
                f"{written}: {new} is not a class of the model, {', '.join(classes)}; {hint}, or "
                f"{APART} for a class that the model lacks"
            )
    raise UserError(
        f"{written}: {data_dir} has no class {pairs[0][0]}; its classes are "
        f"{', '.join(sorted(labels))}; write OLD=NEW with one of them as OLD"
    )
