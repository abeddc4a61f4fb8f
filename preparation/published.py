"""Recognise the files of the published data set and name their patients.

Every file of the Bangladesh Brain Cancer MRI Dataset (doi 10.17632/mk56jw9rns.1) is a copy of a
slice of the data set of Cheng et al. (figshare, doi 10.6084/m9.figshare.1512427), in which the
patients are known. `published_patients.csv` lists the first 12 digits of the SHA-256 of its files,
the patient (a pseudonym) and the number of the slice in Cheng's set. docs/duplicates.md describes
how the table was made; `prepare.py SOURCE --against OTHER` makes it again.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

TABLE = Path(__file__).with_name("published_patients.csv")
HASH_DIGITS = 12


def find_published_patients(digests: Iterable[str]) -> dict[str, str]:
    """Return the patient of each SHA-256 that is a file of the published data set."""
    table = pd.read_csv(TABLE, dtype=str)
    known = dict(zip(table["sha256"], table["patient"], strict=True))
    return {
        digest: known[digest[:HASH_DIGITS]] for digest in digests if digest[:HASH_DIGITS] in known
    }
