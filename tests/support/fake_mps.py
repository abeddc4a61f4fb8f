"""Apple's GPU without a Mac: tensors of the CPU that claim to be on `mps`, and what MPS lacks.

Values, gradients and optimizer steps are real. Refused is what torch refuses there; its sources are
`aten/src/ATen/native/mps` and the list of failing tests in `torch/testing/_internal/common_mps.py`.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # shows operations within functions
from torch.utils._pytree import tree_leaves, tree_map

MPS = torch.device("mps", 0)
BICUBIC = 2  # of torch's grid sampler
MISSING = {"take", "float_power", "_pdist_forward", "adaptive_max_pool3d", "ormqr"}
TO_HOST = {Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__reduce_ex__}
# The last is called by Module.to.
MIXING = {Tensor.to, Tensor.copy_, torch._has_compatible_shallow_copy_type}


class MpsError(RuntimeError):
    """What torch raises for an operation that MPS does not have."""


class MpsTensor(Tensor):
    """A tensor on the fake device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return MPS

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)  # files hold plain tensors


class _RefusingOperations(TorchDispatchMode):
    """Refuses operations and types that the device does not have."""

    def __init__(self, has_bicubic: bool) -> None:
        super().__init__()
        self.has_bicubic = has_bicubic

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name == "grid_sampler_2d" and args[2] == BICUBIC and not self.has_bicubic:
            raise MpsError("MPS: Unsupported Bicubic interpolation")
        if name in MISSING:
            raise NotImplementedError(f"aten::{name} is not implemented for the MPS device")
        if name == "_adaptive_avg_pool2d":
            sides = zip(args[0].shape[2:], args[1], strict=True)
            if any(side % wanted for side, wanted in sides):
                raise MpsError("Adaptive pool MPS: input sizes must be divisible by output sizes")
        found = func(*args, **(kwargs or {}))
        tensors = [each for each in tree_leaves(found) if isinstance(each, Tensor)]
        check_types([each for each in tensors if each.dim()])  # Python numbers are fp64 scalars
        return found


def check_types(tensors: list[Tensor]) -> None:
    if any(each.dtype in {torch.float64, torch.complex128} for each in tensors):
        raise TypeError("MPS framework doesn't support float64")


class FakeMps(TorchFunctionMode):
    """Keeps apart the tensors of the device and of the host."""

    def __init__(self, has_bicubic: bool = False) -> None:
        super().__init__()
        self.operations = _RefusingOperations(has_bicubic)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        on_device = [each for each in tensors if isinstance(each, MpsTensor)]
        if func is Tensor.pin_memory or kwargs.get("pin_memory"):
            raise MpsError("memory is not pinned for MPS")
        target = _find_target(func, args, kwargs)
        if not on_device and (target is None or target.type != MPS.type):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func not in MIXING and len(on_device) < len([each for each in tensors if each.dim()]):
            raise MpsError(f"{func}: tensors of the device and of the host")
        args, kwargs = _replace_device((args, kwargs))
        with torch._C.DisableTorchFunctionSubclass(), self.operations:
            found = func(*args, **kwargs)
        to_host = func in TO_HOST or (target is not None and target.type == "cpu")
        if func is Tensor.copy_:
            to_host = not isinstance(args[0], MpsTensor)
        kind: Any = Tensor if to_host else MpsTensor
        return tree_map(lambda each: _convert(each, kind), found)


def _find_target(func: Any, args: Any, kwargs: Any) -> torch.device | None:
    """Return the device that a call names."""
    named = [kwargs.get("device"), *(args[1:2] if func is Tensor.to else ())]
    for value in named:
        if isinstance(value, MpsTensor):
            return MPS
        if isinstance(value, torch.device | str):
            return torch.device(value)
    return None


def _replace_device(values: Any) -> Any:
    """Name the CPU instead of the fake device."""

    def replace(value: Any) -> Any:
        if isinstance(value, torch.device) and value.type == MPS.type:
            return torch.device("cpu")
        return "cpu" if isinstance(value, str) and value.startswith(MPS.type) else value

    return tree_map(replace, values)


def _convert(value: Any, kind: Any) -> Any:
    if not isinstance(value, Tensor) or (isinstance(value, kind) and type(value) is kind):
        return value
    if kind is MpsTensor:
        check_types([value])
        return value.as_subclass(MpsTensor)
    return value.as_subclass(Tensor) if isinstance(value, MpsTensor) else value


@contextlib.contextmanager
def fake_mps(patch: pytest.MonkeyPatch, *, has_bicubic: bool = False) -> Iterator[FakeMps]:
    """Give this machine the device `mps`.

    Args:
        patch: Replaces functions of torch.
        has_bicubic: Whether the grid sampler is bicubic too, as in newer versions of torch.
    """
    importlib.import_module("torch._dynamo")  # modes import it, and it reads what is replaced here
    patch.setattr(torch.mps, "manual_seed", torch.default_generator.manual_seed)
    patch.setattr(torch.accelerator, "synchronize", lambda _: None)
    # else modules would keep the class of their parameters when they move
    patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    with FakeMps(has_bicubic) as mps:
        yield mps
