"""Packages that every user installs are not under a licence that extends to the program."""

import re
from importlib.metadata import metadata

import pytest

from tests.support.builders import ROOT

REQUIRED = re.findall(r"^[\w-]+", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
KEYS = ("License-Expression", "License", "Classifier")


@pytest.mark.parametrize("package", REQUIRED)
def test_required_packages_are_not_under_the_gpl(package: str) -> None:
    found = metadata(package)
    # a whole licence, which may name others, begins with its title
    stated = [line.split("\n")[0] for key in KEYS for line in found.get_all(key, [])]
    assert stated
    assert "GPL" not in " ".join(stated)
