"""Masks among the images of a source are recognised by name, and by content if alone."""

import io

import numpy as np
import pytest
from PIL import Image

from preparation.folder_kinds import split_mask_name
from preparation.masks import find_masks
from preparation.sources import Entry


def encode(n_levels: int) -> bytes:
    pixels = np.linspace(0, n_levels - 1e-6, 64).astype(np.uint8).reshape(8, 8) * 50
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def build_entries(**levels: int) -> list[Entry]:
    return [
        Entry(f"yes/{name}.png", 1, 0, lambda n=n: encode(n))  # type: ignore[misc]
        for name, n in levels.items()
    ]


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("benign (1)_mask.png", "benign (1)"),
        ("benign (1)_mask_1.png", "benign (1)"),
        ("TCGA_CS_4941_1_mask.tif", "tcga_cs_4941_1"),
        ("Brats18_2013_1_seg.nii.gz", "brats18_2013_1"),
        ("7-GT.bmp", "7"),
        ("a.segmentation.png", "a"),
        ("mask_a.png", "a"),
        ("GT-07.bmp", "07"),
        ("damask.png", ""),
        ("mask.png", ""),
        ("IM0001.png", ""),
    ],
)
def test_endings_of_masks(name: str, start: str) -> None:
    assert split_mask_name(name) == start


def test_twins_are_masks_whatever_their_content() -> None:
    entries = build_entries(a=5, a_mask=5, b=5, b_seg=2)
    assert find_masks(entries) == ["yes/a_mask.png", "yes/b_seg.png"]


def test_starts_of_masks() -> None:
    entries = build_entries(a=5, mask_a=5, image_7=5, seg_7=5, mask_9=5, mask_8=2)
    assert find_masks(entries) == ["yes/mask_a.png", "yes/seg_7.png", "yes/mask_8.png"]


def test_the_content_decides_without_a_twin() -> None:
    assert find_masks(build_entries(a_mask=2, b_mask=5)) == ["yes/a_mask.png"]
    damaged = Entry("yes/c_mask.png", 1, 0, lambda: b"no image")
    assert find_masks([damaged]) == []


def test_masks_beside_several_sequences() -> None:
    names = ["x/B_t1.nii.gz", "x/B_t2.nii.gz", "x/B_seg.nii.gz", "y/B_t1.nii.gz"]
    entries = [Entry(name, 1, 0, lambda: b"") for name in names]
    assert find_masks(entries) == ["x/B_seg.nii.gz"]
