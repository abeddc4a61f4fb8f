"""A network that computes in whole numbers of 8 bits, for CPUs that do so faster than in fp32."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from helper import UserError, first_line
from onnx_export import exporter

if TYPE_CHECKING:
    import onnx


def quantise(path: Path, batches: Iterable[NDArray[Any]], name: str) -> None:
    """Let the network of a file compute in 8 bits, in place.

    What comes before its first convolution, and all from its last layer on, stays as it is.

    Args:
        path: Of `onnx_export.exporter.write_onnx`.
        batches: uint8 pictures [B, 1, H, W]; between their least and greatest value in each place
            of the network the 256 steps are laid.
        name: Of the network, for an error.

    Raises:
        UserError: onnxruntime cannot do it.

    Source: Jacob et al. 2018, Quantization and training of neural networks for efficient
    integer-arithmetic-only inference.
    """
    import onnx
    from onnxruntime import quantization

    with exporter.quiet(), tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        try:
            quantization.quantize_static(
                path,
                made,
                _Reader(batches),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,  # weights of 7 bits: no sum overflows on CPUs without VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=_list_kept(onnx.load(path, format="protobuf")),
            )
            onnx.checker.check_model(made, full_check=True)
            shutil.copyfile(made, path)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise UserError(
                f"--precision int8: onnxruntime cannot quantise {name} "
                f"({first_line(error)}); leave it out"
            ) from error


class _Reader:
    """Gives batches as onnxruntime asks for them: one at a time, None at the end."""

    def __init__(self, batches: Iterable[NDArray[Any]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {exporter.INPUT: batch}


def _list_kept(model: "onnx.ModelProto") -> list[str]:
    """The nodes before the first convolution, and from the last layer on."""
    nodes = model.graph.node
    kinds = [node.op_type for node in nodes]
    first = kinds.index("Conv")
    last = max(place for place, kind in enumerate(kinds) if kind in {"Conv", "Gemm"})
    return [node.name for place, node in enumerate(nodes) if not first <= place < last]
