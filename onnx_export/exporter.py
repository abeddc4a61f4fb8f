"""Write a predictor as one ONNX file with metadata, and run such a file."""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import helper
from helper import UserError, first_line
from imaging.grayscale import Pixels
from inference.predictor import SlicePredictor
from onnx_export.preprocessing_graph import PreprocessingGraph
from reporting import wording

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
MAX_BYTES = 2**31  # protobuf's limit for one file
INPUT, PROBABILITIES, SETS = "images", "probabilities", "prediction_sets"


def check_packages() -> None:
    """Raise a UserError with the install command if a package for the export is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"export.py: {', '.join(missing)} not installed; "
            f"{Path(sys.executable).name} -m pip install -r requirements-export.txt"
        )


def build_graph(predictor: SlicePredictor) -> PreprocessingGraph:
    """Return the networks with preprocessing and calibration; plain softmax if not calibrated."""
    networks = [member.network for member in predictor.members]
    temperature = (predictor.fitted.calibration or {"temperature": 1.0})["temperature"]
    return PreprocessingGraph(networks, temperature, list_thresholds(predictor)).eval()


def list_thresholds(predictor: SlicePredictor) -> list[float] | None:
    """Return for each class the least probability in a prediction set; None if none was fitted."""
    if not predictor.fitted.has_sets:
        return None
    assert predictor.fitted.calibration is not None
    thresholds = predictor.fitted.calibration["conformal"]["thresholds"]
    return [value or 0.0 for value in thresholds.values()]


def build_metadata(predictor: SlicePredictor) -> dict[str, str]:
    """Return the metadata of the file; values other than text are JSON.

    An entry that differs between the networks lists the values of all of them.
    """
    fitted, has_sets = predictor.fitted.calibration or {}, predictor.fitted.has_sets
    conformal, checkpoint = fitted.get("conformal", {}), predictor.members[0].checkpoint
    classes, phantom = checkpoint["classes"], predictor.is_phantom
    splits = [each.checkpoint["config"]["data"]["split_by"] for each in predictor.members]
    sets = f"; {SETS}: bool [batch, classes], classes that cannot be ruled out" if has_sets else ""
    values: dict[str, Any] = {
        "classes": classes,
        "run": _join(each.checkpoint["run"] for each in predictor.members),
        "networks": len(predictor.members),
        "model": _join(each.checkpoint["model"] for each in predictor.members),
        "image_size": _join(each.image_size for each in predictor.members),
        "intensity": _join(each.network.preprocess.intensity for each in predictor.members),
        "value_ranges": predictor.value_ranges,
        "calibrated": bool(fitted),
        "fitted_on": predictor.fitted.source,
        "temperature": fitted.get("temperature", 1.0),
        "conformal_alpha": conformal.get("alpha"),
        "conformal_thresholds": conformal.get("thresholds"),
        "data": wording.describe_origin(Path(checkpoint["data"]).name, classes, phantom),
        "phantom": phantom,
        "split_by": _join(splits),
        "leaky_split": "image" in splits,
        "precision": "fp32",
        "checkpoint_sha256": _join(
            hashlib.sha256(each.path.read_bytes()).hexdigest() for each in predictor.members
        ),
        "commit_of_training": checkpoint["environment"]["commit"],
        "commit_of_export": helper.read_commit(),
        "input": (
            f"{INPUT}: uint8 [batch, 1, height, width], grey, 0 is black; any size and any of the "
            "eight orientations; orientation, resize, scaling and normalisation are part of the "
            "graph; deeper images are scaled by value_ranges if their file declares no bit depth"
        ),
        "outputs": f"{PROBABILITIES}: fp32 [batch, classes], "
        + ("calibrated" if fitted else "plain softmax, not calibrated")
        + sets,
        "limits": "Out-of-distribution images are not detected.",
        "notice": helper.NOTICE,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in values.items()
    }


def _join(values: Iterable[str | int]) -> str:
    return " ".join(dict.fromkeys(map(str, values)))


def write_onnx(path: Path, graph: PreprocessingGraph, metadata: dict[str, str]) -> None:
    """Write the graph with its weights into one file and check that it is valid ONNX.

    Raises:
        UserError: The weights exceed the limit of a file, or torch cannot export the network.
    """
    name = metadata["model"]
    n_bytes = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    if n_bytes >= MAX_BYTES:
        raise UserError(
            f"{name}: its weights take {n_bytes / 2**30:.1f} GiB, one ONNX file holds less than "
            f"{MAX_BYTES / 2**30:.0f}; export a smaller network"
        )
    import onnx

    with silence():
        try:
            exported = _trace(graph)
            _remove_debug_info(exported)
            onnx.helper.set_model_props(exported, metadata)
            onnx.save(exported, path, format="protobuf")  # whatever the suffix
            onnx.checker.check_model(path, full_check=True)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            raise UserError(
                f"{name} cannot be written as ONNX by torch {torch.__version__} "
                f"({first_line(error)}); see --debug, or export another network"
            ) from error


def set_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Replace the metadata of a file."""
    import onnx

    exported = onnx.load(path, format="protobuf")
    onnx.helper.set_model_props(exported, metadata)
    onnx.save(exported, path, format="protobuf")


def _trace(graph: PreprocessingGraph) -> "onnx.ModelProto":
    """Return the ONNX graph with dynamic batch, height and width."""
    axes = {0: "batch", 2: "height", 3: "width"}
    program = torch.onnx.export(
        graph,
        (torch.zeros(2, 1, 48, 40, dtype=torch.uint8),),  # unequal, so that no size is fixed
        input_names=[INPUT],
        output_names=[PROBABILITIES] if graph.thresholds is None else [PROBABILITIES, SETS],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in axes.items()},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _remove_debug_info(model: "onnx.ModelProto") -> None:
    """Remove source lines and paths of this machine, which torch stores with each node."""
    graph = model.graph
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.node):
        part.ClearField("metadata_props")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress warnings, logs and prints of the exporter, which users cannot act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


# ---- running the file


def open_onnx(path: Path, threads: int) -> "InferenceSession":
    """Open the file with onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: "InferenceSession", images: list[Pixels]) -> list[NDArray[Any]]:
    """Return probabilities [B, K] and any prediction sets [B, K] of images of one shape [H, W]."""
    return session.run(None, {INPUT: np.stack(images)[:, None]})
