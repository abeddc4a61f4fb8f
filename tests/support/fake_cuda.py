"""CUDA without a GPU: tensors of shapes without values, and an error where a step would wait.

Only what this machine cannot have is replaced: values on the device, streams, pinned memory and the
backward pass, which autograd runs in threads of the driver.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

# Internals of torch: the only way to run CUDA operations without a driver.
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
READS = (aten._local_scalar_dense.default, aten.equal.default)  # item(), float(), bool(); equal()
READ_AS = {torch.bool: False, torch.int64: 0, torch.int32: 0, torch.uint8: 0}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
EMPTY = aten.empty.memory_format


class HostWaitError(Exception):
    """The host would wait for the device, or the device for the host."""


class FakeEvent:
    """An event that knows the device on whose stream it was recorded."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device: Any = None
        self.is_awaited = False

    def record(self, stream: Any = None) -> None:
        self.device = stream or torch.cuda.current_stream()

    def synchronize(self) -> None:
        assert self.device is not None, "waits for an event that was never recorded"
        self.is_awaited = True


class FakeCuda(TorchDispatchMode):
    """Runs operations on CUDA tensors without values, and all others as usual.

    Tensors that were copied to the device have their values when they are copied back; all others
    come back as random numbers.

    Attributes:
        is_strict: Refuse what makes host or device wait for the other.
        n_unread: Asynchronous copies to the host since the device was last waited for.
        current: Number of the current device.
        events: Every event that was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_strict = False
        self.n_unread = self.current = 0
        self.events: list[FakeEvent] = []
        self.fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._values = WeakTensorKeyDictionary()  # of tensors that came from the host
        self._pinned = WeakTensorKeyDictionary()
        self._generator = torch.Generator().manual_seed(0)

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Refuse everything that waits."""
        self.is_strict = True
        try:
            yield
        finally:
            self.is_strict = False

    def pin(self, values: torch.Tensor) -> torch.Tensor:
        """Return a copy of a CPU tensor that counts as pinned."""
        assert not isinstance(values, FakeTensor), "only memory of the host can be pinned"
        with unset_fake_temporarily():
            pinned = values.clone()
        self._pinned[pinned] = True
        return pinned

    def synchronise(self, device: torch.device) -> None:
        self._refuse(f"synchronize({device})")
        self.n_unread = 0

    def backward(self, loss: torch.Tensor) -> None:
        """Give every leaf of a loss a gradient."""
        assert isinstance(loss, FakeTensor)
        assert loss.dtype == torch.float32
        for leaf in _find_leaves(loss.grad_fn):
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad + 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        on_device = [each for each in tensors if isinstance(each, FakeTensor)]
        target = torch.device(kwargs.get("device") or "cpu")
        if not on_device and target.type == "cpu":
            return self._run_on_host(func, args, kwargs)
        if func in COPIES:
            return self._copy(func, args, kwargs, target)
        if func in READS:
            self._refuse(str(func))
            return READ_AS.get(on_device[0].dtype, 0.0) if func in READS[:1] else False
        if func in INDEXING:
            self._check_indices(func, args[1])
        if len(on_device) < len([each for each in tensors if each.dim()]):
            raise HostWaitError(f"{func}: tensors of the device and of the host")
        return func(*args, **kwargs)

    def _run_on_host(self, func: Any, args: Any, kwargs: Any) -> Any:
        is_pinned = func is EMPTY and kwargs.pop("pin_memory", False)
        with unset_fake_temporarily():
            found = func(*args, **kwargs)
        return self.pin(found) if is_pinned else found

    def _copy(self, func: Any, args: Any, kwargs: Any, target: torch.device) -> Any:
        """Run `_to_copy` (source, device=…) or `copy_` (destination, source)."""
        in_place = func is aten.copy_.default
        source = args[1] if in_place else args[0]
        is_async = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        to_device = isinstance(args[0], FakeTensor) if in_place else target.type == "cuda"
        if not in_place and "device" not in kwargs:
            to_device = True  # another dtype or layout, on the device
        if isinstance(source, FakeTensor) and to_device:
            return func(*args, **kwargs)
        if to_device:
            if source.dim() and not (is_async and source in self._pinned):
                self._refuse("copy to the device of memory that is not pinned")
            copied = func(*args, **kwargs)
            with unset_fake_temporarily():
                self._values[copied] = source.detach().clone()
            return copied
        if in_place and args[0] not in self._pinned:
            is_async = False
        if not is_async:
            self._refuse("copy to the host")
        self.n_unread += is_async
        with unset_fake_temporarily():
            values = self._values.get(source)
            values = self._draw(source) if values is None else values
            return args[0].copy_(values) if in_place else values.to(kwargs.get("dtype"))

    def _check_indices(self, func: Any, indices: Any) -> None:
        for index in indices:
            if index is None:
                continue
            if not isinstance(index, FakeTensor):
                raise HostWaitError(f"{func}: indices on the host")
            if index.dtype in {torch.bool, torch.uint8}:
                self._refuse(f"{func} with a mask, whose length depends on the values")

    def _draw(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype.is_floating_point:
            drawn = torch.randn(tensor.shape, generator=self._generator)
            return drawn.to(tensor.dtype)
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    def _refuse(self, what: str) -> None:
        if self.is_strict:
            raise HostWaitError(what)


def _find_leaves(node: Any) -> list[torch.Tensor]:
    """Return the leaves of a graph of autograd, each once."""
    leaves, seen, pending = [], set(), [node]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        pending += [parent for parent, _ in node.next_functions]
    return leaves


@contextlib.contextmanager
def fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Give this machine two CUDA devices whose tensors have no values."""
    cuda = FakeCuda()

    def make_event(*_: Any, **__: Any) -> FakeEvent:
        cuda.events.append(FakeEvent())
        return cuda.events[-1]

    def take_gradients(outputs: Any, inputs: Any, **_: Any) -> tuple[torch.Tensor, ...]:
        inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
        return tuple(torch.zeros_like(each) for each in inputs)

    def keep_layout(old: torch.Tensor, new: torch.Tensor) -> None:
        assert (old.device, old.dtype, old.shape) == (new.device, new.dtype, new.shape)

    def copy_fake(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        copied = tensor.detach().clone()
        if isinstance(tensor, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, tensor.requires_grad)
        return memo.setdefault(id(tensor), copied)

    stubs = {
        "Event": make_event,
        "current_stream": lambda device=None: torch.device("cuda", _index(device, cuda.current)),
        "current_device": lambda: cuda.current,
        "set_device": lambda device: setattr(cuda, "current", _index(device, cuda.current)),
        "mem_get_info": lambda _: (2**33, 2**34),
        "default_generators": tuple(torch.Generator() for _ in range(2)),
        "is_bf16_supported": lambda including_emulation=True: True,
    }
    importlib.import_module("torch._dynamo")  # modes import it, and it reads what is replaced here
    for name, stub in stubs.items():
        patch.setattr(torch.cuda, name, stub)
    # else a machine with one GPU would look for the second one
    patch.setattr(torch._subclasses.fake_tensor, "init_gpu_context", lambda _: None, raising=False)
    # torch warns and disables autocast and GradScaler without a driver
    patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    # Module.to(memory_format=…) swaps parameters, which torch refuses for tensors without values
    patch.setattr(torch.utils, "swap_tensors", keep_layout)
    patch.setattr(FakeTensor, "__deepcopy__", copy_fake)  # torch's own asks for the memory
    patch.setattr(torch.accelerator, "synchronize", cuda.synchronise)
    patch.setattr(torch.Tensor, "pin_memory", lambda values: cuda.pin(values))
    patch.setattr(torch.Tensor, "backward", lambda loss: cuda.backward(loss))
    patch.setattr(torch.autograd, "grad", take_gradients)
    with cuda.fakes, cuda:
        yield cuda


def _index(device: Any, default: int) -> int:
    index = torch.device(device).index if device is not None else None
    return default if index is None else index
