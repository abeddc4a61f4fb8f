"""Read files of weights without running code in them, and name what other files are."""

import pickletools
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from common.file_starts import describe_start
from common.portable_names import quote
from helper import UserError

HEAD_BYTES = 512
N_PICKLES = 4  # in a file of torch before 1.6: magic number, version, system, content
SAVE_TENSORS = (
    "import sys, torch; m = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
    "m = next(v for v in [m, *getattr(m, 'values', list)()] if hasattr(v, 'state_dict')); "
    "torch.save(m.state_dict(), sys.argv[2])"
)
REFUSES_CODE = "not readable as plain tensors (weights_only=True refuses code)"
MODULE_PACKAGES = ("torch.nn.modules.", "torchvision.models.", "timm.models.")
# First bytes of files that hold no tensors of PyTorch.
MAGIC_BYTES = {
    b"\x89HDF": "an HDF5 file, as Keras and TensorFlow write; convert it to PyTorch first",
    b"\x93NUMPY": "a NumPy array; save a state dict with torch.save",
    b"\x1f\x8b": "compressed by gzip; unpack it and give the file in it",
}
TABLE_END = bytes.fromhex("57fb808b247547db")  # of the index of a TensorFlow checkpoint
TENSORFLOW = "a file of TensorFlow; convert it to PyTorch first"
ONNX = "an ONNX graph; give the state dict of the network that it was exported from"
TORCHSCRIPT = (
    "a TorchScript archive; save its tensors first: python -c "
    "\"import sys, torch; torch.save(torch.jit.load(sys.argv[1], map_location='cpu')"
    '.state_dict(), sys.argv[2])"'
)


class Inert:
    """Stands for an object of a file that is no tensor or plain value; it does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore the arguments of the object."""

    def __setstate__(self, _: Any) -> None:
        """Ignore the state of the object."""


class InertDict:
    """Stands for an object that may be a kind of dict: torch sets items of plain ones only."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Return a dict and ignore the arguments of the object."""
        return OrderedDict()


def load_tensors(path: Path, what: str) -> Any:
    """Load a file of tensors and plain values onto the CPU; code in it is never run.

    Raises:
        UserError: The file is missing or holds something else.
    """
    _check_file(path, what)
    return _load(path, what, [[]])


def read_weights(path: Path, what: str) -> Any:
    """Load the content of any common file of weights onto the CPU; code in it is never run.

    Options, metrics and other objects beside the tensors become inert.

    Raises:
        UserError: The file is missing, damaged, a pickled network or of another program.
    """
    _check_file(path, what)
    if _is_safetensors(path):
        return _load_safetensors(path, what)
    names = [name for name in _list_globals(path) if not name.startswith("torch.")]
    mixed = [(Inert if name.startswith("numpy.") else InertDict, name) for name in names]
    return _load(path, what, [mixed, [(Inert, name) for name in names]])


def _load(path: Path, what: str, attempts: list[list[Any]]) -> Any:
    """Load a file; each attempt lists what replaces objects that torch does not allow."""
    failure: Exception | None = None
    for replaced in attempts:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(replaced):
                warnings.simplefilter("ignore")  # about files that torch.save did not write
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 torch raises any error for damaged files
            failure = error
    raise UserError(f"{what} {path}: {_explain(path)}") from failure


def _check_file(path: Path, what: str) -> None:
    """Raise a UserError for what is no file that torch or safetensors wrote."""
    if path.is_dir():  # opening one raises another error on each system
        best = path / "best.pt"
        advice = f"give {best}" if best.is_file() else "give the file in it"
        raise UserError(f"{what} {path}: a folder; {advice}")
    if not path.exists():
        raise UserError(f"{what} {path}: no such file")
    if kind := _name_kind(path):
        raise UserError(f"{what} {path}: {kind}")


def _name_kind(path: Path) -> str:
    """Return what a file is and what to do; "" for one that torch or safetensors may read."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        n_bytes = file.seek(0, 2)
        file.seek(max(0, n_bytes - len(TABLE_END)))
        end = file.read()
    if not head:
        return "empty (0 bytes); download or copy it again"
    for magic, kind in MAGIC_BYTES.items():
        if head.startswith(magic):
            return kind
    if kind := describe_start(head):
        return kind
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the file in it"
    if head[4:8] == b"TFL3" or end == TABLE_END or ".data-0" in path.name:
        return TENSORFLOW
    # a model begins with its version (field 1), then the name of its producer (field 2) or a graph
    if head[0] == 8 and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return ONNX
    if path.suffix == ".pb" and head[0] == 8:
        return TENSORFLOW
    return _name_zip(path) if head.startswith(b"PK") else ""


def _name_zip(path: Path) -> str:
    """Return what a ZIP archive is; "" if torch.save wrote it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "truncated or damaged; download or copy it again"
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        return f"{TORCHSCRIPT} {quote(path)} {quote(path.with_suffix('.state.pth'))}"
    if "data.pkl" in ends:
        return ""
    if "model.weights.h5" in ends:
        return "a Keras archive; convert it to PyTorch first"
    if any(name.endswith(".npy") for name in names):
        return "NumPy arrays; save a state dict with torch.save"
    return "a ZIP archive without tensors of torch; unpack it and give the file in it"


def _is_safetensors(path: Path) -> bool:
    """Return whether a file begins with a length and the brace of a JSON header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**27


def _load_safetensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        line = "a safetensors file; python -m pip install -r requirements.txt"
        raise UserError(f"{what} {path}: {line}") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{what} {path}: a truncated or damaged safetensors file; download or copy it again"
        ) from error


def _explain(path: Path) -> str:
    """Return in one line why torch refused a file, without text of torch."""
    names = sorted(_list_globals(path))
    modules = [name for name in names if name.startswith(MODULE_PACKAGES)]
    if modules:
        files = f"{quote(path)} {quote(path.with_suffix('.state.pth'))}"
        return (
            "a whole pickled network, which is code and is not loaded (weights_only=True refuses "
            "code); if you trust its source, save its state dict where it was written: "
            f'python -c "{SAVE_TENSORS}" {files}'
        )
    others = [name for name in names if not name.startswith(("torch.", "collections."))]
    if others:
        more = ", …" if len(others) > 3 else ""
        return f"{REFUSES_CODE}; it holds {', '.join(others[:3])}{more}"
    return f"{REFUSES_CODE}: damaged, or torch.save did not write it"


def _list_globals(path: Path) -> set[str]:
    """Return the dotted names of all objects that a file asks for; none is imported."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(each for each in archive.namelist() if each.endswith("data.pkl"))
                with archive.open(name) as file:
                    return set(_read_globals(file))
        names: set[str] = set()
        with path.open("rb") as file:
            for _ in range(N_PICKLES):
                names.update(_read_globals(file))
        return names
    except Exception:  # noqa: BLE001 pickletools raises any error for damaged files
        return set()


def _read_globals(file: IO[bytes]) -> Iterator[str]:
    """Yield the names of one pickle, which follows in the file."""
    words: list[str] = []
    for code, value, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            yield str(value).replace(" ", ".", 1)
        elif code.name == "STACK_GLOBAL" and len(words) > 1:
            yield ".".join(words[-2:])
        elif isinstance(value, str):
            words.append(value)
