"""The pictures of the training slices, by the SHA-256 of their files."""

import hashlib
from pathlib import Path

import dataset
from helper import UserError
from imaging.bit_depth import Ranges, ValueScaler
from imaging.grayscale import ImageError, Pixels, resize_grey
from imaging.reader import read_grey
from inference.predictor import SlicePredictor

SIDE_PX = 160


class TrainingSlices:
    """The images of a prepared folder.

    Args:
        data_dir: The folder.
        paths: Paths below it by SHA-256; empty if its manifest is missing.
        ranges: Of values without a declared bit depth.
    """

    def __init__(self, data_dir: Path, paths: dict[str, str], ranges: Ranges | None = None) -> None:
        self.data_dir, self.paths, self.ranges = data_dir, paths, ranges

    def read(self, digest: str) -> Pixels | None:
        """Return a slice, uint8 [SIDE_PX, SIDE_PX]; None if it is missing or has changed."""
        try:
            content = (self.data_dir / self.paths[digest]).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                return None
            return resize_grey(read_grey(content, ValueScaler(self.ranges)), SIDE_PX)
        except (KeyError, OSError, ImageError):
            return None


def find_training(predictor: SlicePredictor, data_dir: Path | None) -> TrainingSlices:
    """Find the training slices in `data_dir`, by default in the folder of the first checkpoint.

    Raises:
        UserError: `data_dir` was given and has no valid manifest.
    """
    folder = data_dir or Path(predictor.members[0].checkpoint["data"])
    try:
        table = dataset.load_table(folder)
    except (UserError, OSError):
        if data_dir is not None:
            raise
        return TrainingSlices(folder, {})
    paths = dict(zip(table["sha256"], table["path"], strict=True))
    return TrainingSlices(folder, paths, predictor.value_ranges)
