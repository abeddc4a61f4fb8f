"""Quantise the network of an ONNX file to 8-bit integers; measure the lost accuracy on val."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from helper import UserError, first_line, log
from onnx_export import exporter, parity, validation
from onnx_export.validation import RunSlices

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

RANGE_SLICES = 128  # training slices for the activation ranges
VAL_SLICES = 1024
MIN_VAL_SLICES = 50  # fewer cannot resolve MAX_LOSS
MAX_LOSS = 0.02  # of accuracy, and of the coverage of prediction sets


def convert(
    path: Path, slices: RunSlices, metadata: dict[str, str], threads: int
) -> "InferenceSession":
    """Quantise a file in place, compare it with fp32 on val and record both in its metadata.

    Raises:
        UserError: Slices are missing, onnxruntime fails, or a difference exceeds MAX_LOSS.
    """
    train, _ = slices.read("train", RANGE_SLICES)
    images, labels = slices.read("val", VAL_SLICES)
    if not train or len(labels) < MIN_VAL_SLICES:
        raise UserError(
            f"--precision int8: {slices.data_dir} holds {len(labels)} val slices of the run, "
            f"{MIN_VAL_SLICES} are needed to measure the lost accuracy; give their folder with "
            "--data, or leave out --precision int8"
        )
    before = validation.score(exporter.open_onnx(path, threads), images, labels)
    batches = (np.stack(batch)[:, None] for _, batch in parity.batch_by_shape(train))
    quantise(path, batches, metadata["model"])
    session = exporter.open_onnx(path, threads)
    after = validation.score(session, images, labels)
    line = (
        f"int8 on {len(labels)} val slices: {after.describe()}; fp32: {before.describe()}; "
        f"the same label on {(before.predicted == after.predicted).mean():.1%}"
    )
    losses = before.accuracy - after.accuracy, (before.coverage or 0) - (after.coverage or 0)
    if max(losses) > MAX_LOSS:
        raise UserError(f"{line}; the difference is too large: leave out --precision int8")
    log.info("%s", line)
    figures = {
        figure: {"int8": getattr(after, figure), "fp32": getattr(before, figure)}
        for figure in ("accuracy", "coverage", "set_size")
    }
    added = {"precision": "int8", "val": json.dumps({"n": len(labels), **figures})}
    exporter.set_metadata(path, metadata | added)
    return session


def quantise(path: Path, batches: Iterable[NDArray[Any]], model: str) -> None:
    """Quantise the convolutions of a file in place; preprocessing and last layer stay in fp32.

    Args:
        path: Written by `exporter.write_onnx`.
        batches: uint8 images [B, 1, H, W] for the activation ranges.
        model: Name of the network, for errors.

    Raises:
        UserError: onnxruntime cannot quantise the network.

    Source: Jacob et al. 2018, Quantization and training of neural networks for efficient
    integer-arithmetic-only inference.
    """
    import onnx
    from onnxruntime import quantization

    with exporter.silence(), tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / path.name
        try:
            quantization.quantize_static(
                path,
                quantised,
                _CalibrationReader(batches),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # 7-bit weights: no sum overflows on CPUs without VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_list_fp32_nodes(onnx.load(path, format="protobuf")),
            )
            onnx.checker.check_model(quantised, full_check=True)
            shutil.copyfile(quantised, path)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise UserError(
                f"--precision int8: onnxruntime cannot quantise {model} "
                f"({first_line(error)}); leave it out"
            ) from error


class _CalibrationReader:
    """Passes batches to onnxruntime, one for each call and None at the end."""

    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {exporter.INPUT: batch}


def _list_fp32_nodes(model: "onnx.ModelProto") -> list[str]:
    """Return the nodes before the first convolution, and from the last layer on."""
    nodes = model.graph.node
    kinds = [node.op_type for node in nodes]
    first = kinds.index("Conv")
    last = max(index for index, kind in enumerate(kinds) if kind in {"Conv", "Gemm"})
    return [node.name for index, node in enumerate(nodes) if not first <= index < last]
