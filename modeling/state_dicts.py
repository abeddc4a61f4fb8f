"""Find the weights of a network in the content of a file, by names and shapes.

Programs save a state dict under different keys and prefixes, or number the layers in their order.
No fixed list of these is tried: the key, prefix and order are taken that most tensors agree with.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import model

MAX_DEPTH = 4  # of nested dicts in a file
MAX_STEM_CHANNELS = 3
# EMA weights are preferred to the trained ones: the results of a published network are theirs.
EMA_NAME = r"(^|[._])(ema|averaged|teacher|shadow)([._]|$)"
# Names that torchvision's own files and modules of older versions have.
OLD_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)


@dataclass(frozen=True)
class Match:
    """What a state dict holds of a network.

    Attributes:
        key: Where the state dict is in the file; "" if it is the whole file.
        prefix: Of the names of the network's tensors, e.g. `module.`.
        in_order: True if the layers are numbered.
        loaded: Names of the backbone and the tensors for them.
        missing: Names of the backbone without a tensor.
        misshapen: The same with a tensor of another shape, with both shapes.
        surplus: Names in the state dict that only a larger or other backbone has.
        left_out: Other names in the state dict that are not loaded.
        n_classes: Outputs of its head; 0 if there is none.
        others: Keys of further state dicts in the file that would fit.
    """

    key: str = ""
    prefix: str = ""
    in_order: bool = False
    loaded: dict[str, Tensor] = field(default_factory=dict)
    missing: Sequence[str] = ()
    misshapen: Sequence[str] = ()
    surplus: Sequence[str] = ()
    left_out: Sequence[str] = ()
    n_classes: int = 0
    others: Sequence[str] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the whole backbone is there, and of no larger one."""
        return bool(self.loaded) and not (self.missing or self.misshapen or self.surplus)


class Target:
    """Names and shapes that a network needs.

    Args:
        network: It may be on the meta device.
        takes_colour: Whether a stem of three channels can be folded into its own.
    """

    def __init__(self, network: model.Classifier, takes_colour: bool = True) -> None:
        self.head = f"{network.head_name}."
        self.takes_colour = takes_colour
        self.stem = f"{model.find_stem(network.backbone)}."
        self.own = network.backbone.state_dict()
        backbone = {key for key in self.own if not key.startswith(self.head)}
        self.known = {key: self.own[key] for key in backbone}
        # integers are counters and positions, which a network has by itself
        is_optional = {f"{self.stem}bias"} if takes_colour else set()
        self.needed = {
            key
            for key, tensor in self.known.items()
            if tensor.is_floating_point() and key not in is_optional
        }
        first = {key.split(".")[0] for key in self.own}
        modules: dict[str, nn.Module | None] = network.backbone._modules
        present = [name for name, module in modules.items() if module is not None]
        alone = {name: name for name in first - set(modules)}  # parameters of the backbone itself
        self.orders = [(False, {name: name for name in first | set(present)})]
        for names in (present, list(modules)):  # some programs count auxiliary heads, some do not
            self.orders.append((True, alone | {str(i): name for i, name in enumerate(names)}))

    def accepts(self, name: str, tensor: Tensor) -> bool:
        """Return whether a tensor can be loaded under a name of the backbone."""
        own = self.known[name]
        if tensor.is_floating_point() != own.is_floating_point() or tensor.is_meta:
            return False
        if name == f"{self.stem}weight" and self.takes_colour:
            return tensor.dim() == own.dim() and (
                tensor.shape == own.shape
                or tuple(tensor.shape) == (own.shape[0], MAX_STEM_CHANNELS, *own.shape[2:])
            )
        return tensor.shape == own.shape

    def describe_shape(self, name: str) -> str:
        """Return the shape that a tensor needs."""
        shape = list(map(str, self.known[name].shape))
        if name == f"{self.stem}weight" and self.takes_colour:
            shape[1] = f"{MAX_STEM_CHANNELS} or 1"
        return f"({', '.join(shape)}{',' if len(shape) == 1 else ''})"


def find_weights(content: Any, target: Target) -> Match:
    """Return what agrees best with a network among all state dicts in the content of a file.

    Of equally good ones, EMA weights are preferred, then the first one.
    """
    matches = [
        match
        for key, tensors in list_state_dicts(content)
        for match in _match_orders(key, _rename_old(tensors), target)
    ]
    if not matches:
        return Match(missing=sorted(target.needed))
    best = max(matches, key=_rank)
    fitting = dict.fromkeys(match.key for match in matches if match.is_whole)
    others = [key for key in fitting if key != best.key]
    return Match(**{**vars(best), "others": others})


def list_state_dicts(content: Any, key: str = "", depth: int = 0) -> list[tuple[str, dict]]:
    """Return every dict with named tensors in the content of a file, and its key."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return []
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    found = [(key, tensors)] if tensors else []
    for name, value in named.items():
        found += list_state_dicts(value, f"{key}.{name}" if key else name, depth + 1)
    return found


def _rename_old(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, new in OLD_NAMES:
            name = re.sub(pattern, new, name)
        renamed[name] = tensor
    return renamed


def _rank(match: Match) -> tuple[bool, int, bool]:
    is_ema = re.search(EMA_NAME, f"{match.key}.{match.prefix}") is not None
    return match.is_whole, len(match.loaded), is_ema


def _match_orders(key: str, tensors: dict[str, Tensor], target: Target) -> Iterator[Match]:
    """Yield a match for each naming of the layers, with the prefix of most tensors."""
    for in_order, children in target.orders:
        counts: Counter[str] = Counter()
        for name, tensor in tensors.items():
            for prefix, own in _split(name, children):
                counts[prefix] += own in target.known and target.accepts(own, tensor)
        most = max(counts.values(), default=0)
        for prefix in [prefix for prefix, n in counts.items() if n == most > 0]:
            yield _match(key, prefix, in_order, children, tensors, target)


def _split(name: str, children: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each division of a name into a prefix and a name of the backbone."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part in children:
            own = ".".join([children[part], *parts[i + 1 :]])
            yield "".join(f"{each}." for each in parts[:i]), own


def _match(
    key: str,
    prefix: str,
    in_order: bool,
    children: dict[str, str],
    tensors: dict[str, Tensor],
    target: Target,
) -> Match:
    loaded, misshapen, surplus, left_out, n_classes = {}, {}, [], [], 0
    head_child = target.head.split(".")[0]
    for name, tensor in tensors.items():
        if not name.startswith(prefix):
            left_out.append(name)
            continue
        first, *rest = name[len(prefix) :].split(".")
        own = ".".join([children.get(first, first), *rest])
        if own in target.known and target.accepts(own, tensor):
            loaded[own] = tensor
        elif own in target.known and own in target.needed:
            shape, needed = tuple(tensor.shape), target.describe_shape(own)
            misshapen[own] = f"{name} {shape} instead of {needed}"
        elif first in children and children[first] != head_child and tensor.numel() > 1:
            surplus.append(name)  # of a layer that this backbone does not have
        elif tensor.dim() or tensor.is_floating_point():  # no counter
            left_out.append(name)
            n_classes = len(tensor) if own == f"{target.head}weight" else n_classes
    missing = sorted(target.needed - set(loaded) - set(misshapen))
    return Match(
        *(key, prefix, in_order, loaded, missing),
        *(list(misshapen.values()), surplus, left_out, n_classes),
    )
