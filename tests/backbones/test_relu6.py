"""ReLU6 that keeps only its result: the same bits as torch's, with less memory."""

import copy

import pytest
import torch
from torch import Tensor, nn

import model
from backbones.relu6 import ReLU6, replace_relu6

EDGES = torch.tensor(
    [-float("inf"), -1.0, -0.0, 0.0, 1e-30, 3.0, 6.0 - 1e-6, 6.0, 6.5, float("inf"), float("nan")]
)


def compute_gradient(layer: nn.Module, values: Tensor) -> tuple[Tensor, Tensor]:
    leaf = values.clone().requires_grad_()
    result = layer(leaf * 1)
    result.backward(torch.linspace(1, 2, len(values)))
    assert leaf.grad is not None
    return result.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_torch(dtype: torch.dtype) -> None:
    ours = compute_gradient(ReLU6(inplace=True), EDGES.to(dtype))
    theirs = compute_gradient(nn.ReLU6(), EDGES.to(dtype))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))  # also NaN and -0


def measure_kept_bytes(network: nn.Module, slices: Tensor) -> tuple[int, list[Tensor]]:
    """Return the bytes that a forward pass keeps for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)  # dropout
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        logits = network(slices)
    logits.sum().backward()
    return sum(kept.values()), [each.grad for each in network.parameters() if each.grad is not None]


def test_network_keeps_a_quarter_less_and_has_the_same_gradients() -> None:
    network = model.build_model("mobilenet_v2", 3, 64).train()
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, ReLU6):
            plain.set_submodule(name, nn.ReLU6(inplace=True))
    slices = torch.rand(8, 1, 64, 64)
    ours, gradients = measure_kept_bytes(network, slices)
    theirs, plain_gradients = measure_kept_bytes(plain, slices)
    assert ours < 0.75 * theirs
    for one, other in zip(gradients, plain_gradients, strict=True):
        assert torch.equal(one, other)


def test_layers_that_are_not_in_place_stay() -> None:
    network = nn.Sequential(nn.ReLU6(inplace=False), nn.ReLU(inplace=True), nn.ReLU6(inplace=True))
    replace_relu6(network)
    assert [type(each) for each in network] == [nn.ReLU6, nn.ReLU, ReLU6]


def test_layers_of_two_names_are_replaced_under_both() -> None:
    network = nn.Sequential(nn.ReLU6(inplace=True), nn.ReLU6(inplace=True))
    network[1] = network[0]
    replace_relu6(network)
    assert [type(each) for each in network] == [ReLU6, ReLU6]


def test_second_derivatives_are_refused() -> None:
    leaf = EDGES.clone().requires_grad_()
    result = ReLU6(inplace=True)(leaf * 1).square().sum()
    (gradient,) = torch.autograd.grad(result, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_evaluation_uses_the_layer_of_torch() -> None:
    values = EDGES.clone().requires_grad_()
    result = ReLU6(inplace=True).eval()(values * 1)
    assert type(result.grad_fn).__name__ == "HardtanhBackward0"
