"""Class names of other data: what is suggested, mapped, set apart and refused."""

from pathlib import Path

import pytest

from evaluation.class_names import format_options, match_classes, suggest
from helper import UserError

MODEL = ["glioma", "meningioma", "notumor", "pituitary"]


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("glioma_tumor", MODEL, "glioma"),
        ("GLIOMA", MODEL, "glioma"),
        ("No Tumor", MODEL, "notumor"),
        ("no-tumour", ["no", "yes"], "no"),
        ("Menin", MODEL, "meningioma"),
        ("pituitary tumor MRI", MODEL, "pituitary"),
        ("Tumor", ["Glioma", "Menin", "Tumour"], "Tumour"),
        ("ГЛИОМА", ["глиома", "отек"], "глиома"),
        ("胶质瘤 ", ["胶质瘤", "脑膜瘤"], "胶质瘤"),
        ("no_tumor", ["Glioma", "Menin", "Tumor"], ""),
        ("stroke", MODEL, ""),
        ("glioma", ["Glioma", "glioma_tumor"], ""),  # two of them
        ("no", ["normal", "notumor"], ""),  # too short to begin another name
    ],
)
def test_only_names_that_look_alike_are_suggested(
    name: str, classes: list[str], expected: str
) -> None:
    assert suggest(name, classes) == expected


def test_labels_are_mapped_and_others_set_apart() -> None:
    names = match_classes(
        {"GBM", "meningioma", "stroke", "a=b"}, MODEL, ["GBM=glioma", "a=b=pituitary"], Path("data")
    )
    assert names.by_label == {"GBM": "glioma", "meningioma": "meningioma", "a=b": "pituitary"}
    assert names.others == ["stroke"]
    assert "GBM as glioma" in names.describe()[0]
    assert match_classes({"glioma"}, MODEL, [], Path("data")).describe() == []


def test_a_suggestion_repeats_what_was_given_and_can_be_declined() -> None:
    labels = {"GBM", "no tumor"}
    with pytest.raises(UserError, match='--class-map GBM=glioma --class-map "no tumor=notumor"'):
        match_classes(labels, MODEL, ["GBM=glioma"], Path("data"))
    declined = match_classes(labels, MODEL, ["GBM=glioma", "no tumor=-"], Path("data"))
    assert declined.others == ["no tumor"]


def test_options_are_quoted_for_every_shell() -> None:
    assert format_options(["a=b", "a b=c", "x$=d"]) == (
        "--class-map a=b --class-map \"a b=c\" --class-map 'x$=d'"
    )
