"""The supported transfer syntaxes of DICOM and the decoder of each.

pydicom tries all decoders that are installed. Here each syntax has one, because some decoders abort
the process on damaged files, and so that pixels do not depend on other packages. This module adds
imagecodecs (libjpeg-turbo, CharLS) to pydicom as a plugin. It is imported when the first DICOM file
is decoded, because it imports pydicom.
"""

import importlib.util

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

_UNCOMPRESSED = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
_JPEG_2000 = (JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K)

# pydicom requires this name
DECODER_DEPENDENCIES = dict.fromkeys(
    (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes), ("imagecodecs",)
)
PLUGINS = {  # of pydicom, by supported transfer syntax
    **dict.fromkeys((*_UNCOMPRESSED, DeflatedExplicitVRLittleEndian), ""),
    **dict.fromkeys(DECODER_DEPENDENCIES, "imagecodecs"),
    **dict.fromkeys(_JPEG_2000, "pylibjpeg"),
    RLELossless: "pydicom",
}


def is_available(_: str) -> bool:
    """Return whether the plugin can be used; pydicom calls this for each transfer syntax."""
    return importlib.util.find_spec("imagecodecs") is not None


def decode_frame(codestream: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame of JPEG or JPEG-LS without a colour transform, which is left to pydicom.

    Args:
        codestream: The compressed frame.
        runner: Description of the frame; it receives the format of the returned values.

    Returns:
        Values of a frame [H, W] or [H, W, 3].
    """
    import imagecodecs

    if runner.transfer_syntax in JPEGLSTransferSyntaxes:
        values = imagecodecs.jpegls_decode(codestream)
    else:
        colours = "GRAYSCALE" if runner.samples_per_pixel == 1 else "RGB"
        values = imagecodecs.jpeg8_decode(codestream, colorspace=colours, outcolorspace=colours)
    runner.set_option("bits_allocated", 8 * values.itemsize)
    runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(values).tobytes()


for _syntax in DECODER_DEPENDENCIES:
    get_decoder(_syntax).add_plugin("imagecodecs", (__name__, "decode_frame"))
