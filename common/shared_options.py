"""Options that several commands share."""

from typing import Any

from common.cli import option


def device_option() -> Any:
    """Return the field of `--device`."""
    devices = r"auto|cpu|mps|cuda(:\d+)?"
    return option("auto", "auto, cpu, cuda, cuda:1 or mps", metavar="D", pattern=devices)


def threads_option(purpose: str = "") -> Any:
    """Return the field of `--threads`; `purpose` follows "CPU threads" in its help."""
    words = f"CPU threads{purpose}; 0: as many as there are cores"
    return option(0, words, low=0, high=1024, metavar="N")


def calibration_option() -> Any:
    """Return the field of `--calibration`."""
    words = "calibration that evaluate.py --recalibrate wrote (default: that of the run)"
    return option(None, words, metavar="FILE")


def threshold_option() -> Any:
    """Return the field of `--threshold`."""
    words = "predict CLASS where its calibrated probability is at least P (0 to 1)"
    return option((), words, metavar="CLASS=P", pattern=r".+=[-+.\deE]+")


def debug_option() -> Any:
    """Return the field of `--debug`."""
    return option(False, "show the traceback of an error")


def axis_option() -> Any:
    """Return the field of `--axis`."""
    return option(
        "auto",
        "plane of the slices of NIfTI volumes; auto: of the best resolution",
        choices=("auto", "axial", "coronal", "sagittal"),
    )


def mat_fields_option() -> Any:
    """Return the field of `--mat-fields`."""
    return option(
        None,
        "variables of MATLAB files: image=NAME,label=NAME,patient=NAME (default: those of the data "
        "set of Cheng et al.)",
        metavar="NAMES",
    )
