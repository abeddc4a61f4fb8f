"""Read an image, its class, its patient and the outline of its tumour from a MATLAB file.

Files of Cheng et al. are recognised by their structure `cjdata`. In others, the variables must be
named.

Source: J. Cheng, brain tumor dataset, figshare, 2017, doi 10.6084/m9.figshare.1512427.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from helper import UserError
from imaging.bit_depth import choose_value_type
from imaging.dicom import hash_patient
from imaging.grayscale import ImageError, check_size
from imaging.mat_files import Variable, open_variables

MAX_LISTED = 12  # variables in an error message
MAX_TEXT = 200  # characters of a class or patient
MAX_POINTS = 10_000  # of an outline
CHENG_CLASSES = {"1": "meningioma", "2": "glioma", "3": "pituitary"}
_SCAN_LETTER = re.compile(r"(?<=\d)[a-z]$")  # one of several scans of a patient


@dataclass(frozen=True)
class MatFields:
    """Names of variables, `structure.field` for a field of a structure; "" for none.

    Attributes:
        image: Matrix of grey values.
        label: Text or whole number.
        patient: Text or whole number.
        border: Points of the outline of the tumour, x and y in turn, from 1.
        mask: Pixels of the tumour, of the size of the image.
    """

    image: str = ""
    label: str = ""
    patient: str = ""
    border: str = ""
    mask: str = ""


CHENG_FIELDS = MatFields(
    *("cjdata.image", "cjdata.label", "cjdata.PID", "cjdata.tumorBorder", "cjdata.tumorMask")
)


@dataclass(frozen=True)
class MatImage:
    """The image of a MATLAB file and what the file states of it.

    Attributes:
        values: uint8, int16, uint16, int32 or float32 [H, W].
        label: Class, "" if unknown.
        patient: Pseudonym (`imaging.dicom.hash_patient`), "" if unknown.
        outline: x,y pairs in px from 0, separated by blanks; "" if unknown.
    """

    values: npt.NDArray
    label: str = ""
    patient: str = ""
    outline: str = ""


def parse_fields(text: str) -> MatFields:
    """Parse `image=NAME,label=NAME,patient=NAME`; only the image is required.

    Raises:
        UserError: Another form or an unknown key.
    """
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    named = {key.strip(): name.strip() for key, _, name in pairs}
    keys = [entry.name for entry in fields(MatFields)]
    if not named.get("image") or not all(named.values()) or not named.keys() <= set(keys):
        raise UserError(
            f"--mat-fields {text}: write image=NAME and, if the files hold them, "
            f"{', '.join(f'{key}=NAME' for key in keys[1:])}, separated by commas",
            status=2,
        )
    return MatFields(**named)


def read_mat(source: Path | bytes, named: MatFields | None = None) -> MatImage:
    """Read the image of a MATLAB file of version 5 or 7.3.

    Args:
        source: Path or content of the file.
        named: Its variables; None for a file of Cheng et al.

    Raises:
        ImageError: As `open_variables`; or a variable is missing or is not what its name promises.
    """
    chosen = named or CHENG_FIELDS
    with open_variables(source) as variables:
        for name in vars(chosen).values():
            if name and name not in variables and (named or name == chosen.image):
                raise ImageError(_describe_variables(variables, name if named else ""))
        values = _read_values(variables, chosen.image)
        label = _read_text(variables, chosen.label)
        patient = _read_text(variables, chosen.patient)
        if named is None:
            label = CHENG_CLASSES.get(label, label)
            patient = _SCAN_LETTER.sub("", patient)
        outline = _read_outline(variables, chosen, values.shape)
    return MatImage(values, label, hash_patient(patient), outline)


def _describe_variables(variables: Mapping[str, Variable], missing: str) -> str:
    shown = [
        ascii(f"{name} ({'x'.join(map(str, variable.shape))} {variable.kind})")[1:-1][:MAX_TEXT]
        for name, variable in list(variables.items())[:MAX_LISTED]
    ]
    rest = len(variables) - len(shown)
    listed = ", ".join(shown) + (f" and {rest} more" if rest else "")
    what = f"no variable {missing}" if missing else "a MATLAB file of unknown variables"
    return (
        f"{what}; it holds {listed or 'none'}: name them by "
        "--mat-fields image=NAME,label=NAME,patient=NAME"
    )


def _read_values(variables: Mapping[str, Variable], name: str) -> npt.NDArray:
    variable = variables[name]
    shape = variable.shape
    if len(shape) != 2 or variable.read is None or variable.kind in {"char", "logical"}:
        raise ImageError(
            f"{name} is {'x'.join(map(str, shape))} {variable.kind}, and no matrix of grey values; "
            "save each slice as a matrix of its own"
        )
    check_size(shape[1], shape[0])
    values = variable.read()
    dtype = choose_value_type(values.dtype, values.min(), values.max())
    with np.errstate(over="ignore", invalid="ignore"):  # too large for float32: infinite
        return np.ascontiguousarray(values, dtype)


def _read_text(variables: Mapping[str, Variable], name: str) -> str:
    """Return a text, or a whole number as text; "" for none.

    A number of several digits that are codes of letters is a text that lost its class.
    """
    variable = variables.get(name)
    if variable is None or 0 in variable.shape:
        return ""
    if variable.read is None or np.prod(variable.shape, dtype=float) > MAX_TEXT:
        raise ImageError(f"{name} is neither a text nor a number")
    numbers = variable.read().ravel(order="F")
    if not (numbers == np.rint(numbers)).all():
        raise ImageError(f"{name} is neither a text nor a whole number")
    if variable.kind == "char" or (len(numbers) > 1 and numbers.min() >= 32):
        text = "".join(chr(int(number)) for number in numbers).strip(" \0")
        if not text.isprintable():
            raise ImageError(f"{name} is a text of unprintable characters")
        return text
    if len(numbers) > 1:
        raise ImageError(f"{name} holds {len(numbers)} numbers instead of one")
    return str(int(numbers[0]))


def _read_outline(
    variables: Mapping[str, Variable], chosen: MatFields, shape: tuple[int, ...]
) -> str:
    """Return the border of the tumour, or the outline of its mask if no border agrees with that.

    Files differ in which coordinate stands first; the mask decides.
    """
    mask_variable, border = variables.get(chosen.mask), variables.get(chosen.border)
    mask = None
    if mask_variable is not None and mask_variable.read and mask_variable.shape == shape:
        mask = np.ascontiguousarray(mask_variable.read() != 0, np.uint8)
    points = np.empty((0, 2))
    if border is not None and border.read and np.prod(border.shape, dtype=float) <= 2 * MAX_POINTS:
        numbers = border.read().astype(float).ravel(order="F")
        numbers = numbers if np.isfinite(numbers).all() else numbers[:0]
        points = numbers[: len(numbers) // 2 * 2].reshape(-1, 2) - 1
    if mask is not None and mask.any():
        points = _agree(points, mask)
    if len(points) < 3:
        return ""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _agree(points: npt.NDArray, mask: npt.NDArray) -> npt.NDArray:
    """Return the points in the order x,y that agrees with the mask, else the mask's contour."""
    import cv2  # large, and needed for outlines alone

    for candidate in (points, points[:, ::-1]):
        if len(candidate) < 3 or np.abs(candidate).max() > 2 * max(mask.shape):
            continue
        drawn = np.zeros_like(mask)
        cv2.fillPoly(drawn, [np.ascontiguousarray(np.rint(candidate), np.int32)], 1)
        if 2 * (drawn & mask).sum() > (drawn | mask).sum():  # IoU above a half
            return candidate
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    largest = max(contours, key=cv2.contourArea)
    return largest[:MAX_POINTS, 0].astype(float)
