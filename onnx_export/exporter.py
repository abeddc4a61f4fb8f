"""A classifier as an ONNX file: written as one graph, described in its metadata, opened again."""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import helper
from helper import UserError, first_line
from imaging.grayscale import Pixels
from inference.predictor import Member
from onnx_export.preprocessing_graph import PortableClassifier
from reporting import wording

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
MAX_BYTES = 2**31  # of one file in the format of ONNX
INPUT, PROBABILITIES, SETS = "pictures", "probabilities", "prediction_set"


def check_packages() -> None:
    """Make sure that what only export.py needs is installed.

    Raises:
        UserError: It is not; says how to install it.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"export.py: {', '.join(missing)} not installed; "
            f"{Path(sys.executable).name} -m pip install -r requirements-export.txt"
        )


def make_portable(member: Member) -> PortableClassifier:
    """The network of a checkpoint with its calibration; without one, plain softmax and no sets."""
    fitted = member.kept.get("calibration") or {"temperature": 1.0}
    return PortableClassifier(member.network, fitted["temperature"], list_thresholds(member)).eval()


def list_thresholds(member: Member) -> list[float] | None:
    """For each class the least probability with which it is in a set; None without calibration."""
    fitted = member.kept.get("calibration")
    if fitted is None:
        return None
    return [value or 0.0 for value in fitted["conformal"]["thresholds"].values()]


def describe(member: Member) -> dict[str, str]:
    """What the file says of itself, each value as text."""
    kept, fitted = member.kept, member.kept.get("calibration") or {}
    conformal = fitted.get("conformal", {})
    split_by = kept["config"]["data"]["split_by"]
    values: dict[str, Any] = {
        "classes": kept["classes"],
        "run": kept["run"],
        "model": kept["model"],
        "image_size": member.image_size,
        "calibrated": bool(fitted),
        "temperature": fitted.get("temperature", 1.0),
        "conformal_alpha": conformal.get("alpha"),
        "conformal_thresholds": conformal.get("thresholds"),
        "data": wording.attribute(Path(kept["data"]).name, kept["classes"], kept["phantom"]),
        "phantom": kept["phantom"],
        "split_by": split_by,
        "leaky_split": split_by == "image",
        "precision": "fp32",
        "checkpoint_sha256": hashlib.sha256(member.path.read_bytes()).hexdigest(),
        "commit_of_training": kept["environment"]["commit"],
        "commit_of_export": helper.read_commit(),
        "input": (
            f"{INPUT}: uint8 [batch, 1, height, width], grey, black is 0; of any size, in any of "
            "the eight positions; standard position, resize and scaling are in the graph"
        ),
        "outputs": f"{PROBABILITIES}: fp32 [batch, classes], "
        + ("calibrated" if fitted else "plain softmax, not calibrated")
        + (f"; {SETS}: bool [batch, classes], classes that cannot be ruled out" if fitted else ""),
        "limits": "Pictures unlike those of training are not noticed.",
        "notice": helper.NOTICE,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
    }


def write_onnx(path: Path, portable: PortableClassifier, metadata: dict[str, str]) -> None:
    """Write the graph with its weights into one file, and check that it is valid.

    Raises:
        UserError: The weights exceed what a file can hold, or the network cannot be written.
    """
    name, n_bytes = metadata["model"], _count_bytes(portable)
    if n_bytes >= MAX_BYTES:
        raise UserError(
            f"{name}: its weights take {n_bytes / 2**30:.1f} GiB, one ONNX file holds less than "
            f"{MAX_BYTES / 2**30:.0f}; export a smaller network"
        )
    import onnx

    with quiet():
        try:
            graph = _trace(portable)
            _take_out_notes(graph)
            onnx.helper.set_model_props(graph, metadata)
            onnx.save(graph, path, format="protobuf")  # whatever the name ends with
            onnx.checker.check_model(path, full_check=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise UserError(
                f"{name} cannot be written as ONNX by torch {torch.__version__} "
                f"({first_line(error)}); see --debug, or export another network"
            ) from error


def set_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Let a file say this of itself, and no more."""
    import onnx

    graph = onnx.load(path, format="protobuf")
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, path, format="protobuf")


def _count_bytes(network: torch.nn.Module) -> int:
    kept = (*network.parameters(), *network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def _trace(portable: PortableClassifier) -> "onnx.ModelProto":
    """The graph, with batch, height and width left open."""
    axes = {0: "batch", 2: "height", 3: "width"}
    outputs = [PROBABILITIES] if portable.thresholds is None else [PROBABILITIES, SETS]
    program = torch.onnx.export(
        portable,
        (torch.zeros(2, 1, 48, 40, dtype=torch.uint8),),  # three sizes, so that none is tied
        input_names=[INPUT],
        output_names=outputs,
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _take_out_notes(model: "onnx.ModelProto") -> None:
    """Forget what the exporter notes on each part: lines and paths of this machine."""
    graph = model.graph
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.node):
        part.ClearField("metadata_props")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter warns of, logs and prints: nothing that a user can mend."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# ---- using the file


def open_onnx(path: Path, threads: int) -> "InferenceSession":
    """The file ready for use on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ask(session: "InferenceSession", pictures: list[Pixels]) -> list[NDArray[Any]]:
    """The outputs of the file for pictures of one shape: probabilities [B, K] and any sets."""
    return session.run(None, {INPUT: np.stack(pictures)[:, None]})
