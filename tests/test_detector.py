import copy
import math
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from anomaly_bench.detector import (
    SGD,
    Adadelta,
    Adam,
    Detector,
    RMSProp,
    Rows,
    Stage,
    adam,
    descend,
    detached,
)


class Mean(Detector):
    """The distance from the mean of the training rows."""

    centre: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.learned("centre", "spread")

    def stages(self, train: Rows) -> Iterator[Stage]:
        x = train.map(nn.Identity()).double()
        self.centre, self.spread = x.mean(0), x.std()
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return (x - self.centre).norm(dim=1) / self.spread


def fitted() -> Mean:
    detector = Mean()
    assert list(detector.stages(Rows(torch.randn(9, 4, generator=torch.Generator().manual_seed(0))))) == []
    return detector


def test_a_detector_must_learn_and_score() -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Detector,), {"score": lambda self, x: x})()


def test_an_explanation_is_the_score_and_no_more_unless_a_method_has_more() -> None:
    x = torch.randn(3, 4)
    said = fitted().explain(x)
    assert torch.equal(said.score, fitted().score(x))
    assert said[1:] == (None, None, None)


def test_learned_buffers_are_kept_and_come_back_in_their_shape_and_type() -> None:
    kept = fitted().state_dict()
    assert {name: (tuple(x.shape), x.dtype) for name, x in kept.items()} == {
        "centre": ((4,), torch.float64),
        "spread": ((), torch.float64),
    }
    fresh = Mean()
    assert fresh.centre.numel() == 0
    fresh.load_state_dict(kept)
    assert all(torch.equal(x, kept[name]) for name, x in fresh.state_dict().items())
    assert fresh.centre.dtype == torch.float64


def test_learned_buffers_load_inside_another_module_and_over_other_shapes() -> None:
    outer, fresh = nn.ModuleDict({"inner": fitted()}), nn.ModuleDict({"inner": Mean()})
    fresh["inner"].centre = torch.zeros(7)
    fresh.load_state_dict(outer.state_dict())
    assert torch.equal(fresh["inner"].centre, outer["inner"].centre)


def test_a_detector_with_learned_buffers_pickles() -> None:
    fresh, kept = pickle.loads(pickle.dumps(Mean())), fitted()
    fresh.load_state_dict(kept.state_dict())
    assert torch.equal(fresh.centre, kept.centre)
    assert torch.equal(pickle.loads(pickle.dumps(kept)).spread, kept.spread)


def test_learned_buffers_before_learning_load_too() -> None:
    detector = fitted()
    detector.load_state_dict(Mean().state_dict())
    assert detector.centre.shape == (0,)


def test_a_missing_learned_buffer_is_refused() -> None:
    with pytest.raises(RuntimeError, match="centre"):
        Mean().load_state_dict({"spread": torch.tensor(1.0)})


def test_adam_holds_the_parameters_of_all_its_modules() -> None:
    a, b = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
    (group,) = adam(a, b, lr=0.1, betas=(0.5, 0.9)).param_groups
    assert [id(x) for x in group["params"]] == [id(a.weight), id(a.bias), id(b.weight)]
    assert (group["lr"], group["betas"], group["fused"]) == (0.1, (0.5, 0.9), True)


def test_descend_steps_down_its_own_parameters_and_leaves_no_gradient_elsewhere() -> None:
    mine, other = nn.Linear(2, 2), nn.Linear(2, 1)
    weight, untouched = mine.weight.detach().clone(), other.weight.detach().clone()
    x = torch.ones(1, 2)
    (expected,) = torch.autograd.grad(other(mine(x)).sum(), mine.weight)
    descend(torch.optim.SGD(mine.parameters(), lr=0.1), other(mine(x)).sum())
    torch.testing.assert_close(mine.weight, weight - 0.1 * expected)
    assert torch.equal(other.weight, untouched)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_descend_does_not_add_up_gradients() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    for _ in range(3):
        descend(optimizer, 2 * weight.sum())
    assert weight.item() == -6


def test_descend_keeps_a_graph_that_a_later_loss_needs() -> None:
    mine, other = nn.Linear(1, 1), nn.Linear(1, 1)
    shared = torch.tanh(mine(torch.ones(1, 1)))
    one, two = torch.optim.SGD(other.parameters(), lr=0.1), torch.optim.SGD(mine.parameters(), lr=0.1)
    descend(one, other(shared.square()).sum(), keep_graph=True)
    descend(two, shared.sum())
    shared = torch.tanh(mine(torch.ones(1, 1)))
    descend(two, shared.sum())
    with pytest.raises(RuntimeError, match="second time"):
        descend(two, shared.sum())


def test_descend_refuses_a_loss_that_does_not_reach_a_parameter() -> None:
    mine, idle = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([*mine.parameters(), *idle.parameters()], lr=0.1)
    with pytest.raises(RuntimeError, match="not have been used"):
        descend(optimizer, mine(torch.ones(1, 1)).sum())


def test_detached_losses_have_their_names_and_no_graph() -> None:
    x = torch.ones(1, requires_grad=True)
    losses = detached(a=2 * x.sum(), b=x.mean())
    assert {name: loss.item() for name, loss in losses.items()} == {"a": 2.0, "b": 1.0}
    assert not any(loss.requires_grad for loss in losses.values())


def test_descend_takes_a_gradient_that_lies_otherwise_in_memory_than_its_parameter() -> None:
    """A contiguous weight and a channels-last batch; every entry must get its own gradient."""
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    layers = []
    for fused, memory_format in ((True, torch.channels_last), (False, torch.contiguous_format)):
        torch.manual_seed(0)
        layer = nn.Conv2d(3, 4, 3)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=fused)
        out = layer(x.contiguous(memory_format=memory_format))
        slope = torch.autograd.grad(out.square().sum(), layer.weight, create_graph=True)[0]
        descend(optimizer, slope.square().sum() + 0 * out.sum())
        layers.append(layer)
    torch.testing.assert_close(layers[0].weight, layers[1].weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("mine", "its", "settings"),
    [
        (Adam, torch.optim.Adam, {"betas": (0.5, 0.99), "eps": 1e-5, "weight_decay": 0.2, "fused": True}),
        (SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.2}),
        (Adadelta, torch.optim.Adadelta, {"rho": 0.8, "eps": 1e-5}),
    ],
)
def test_optimisers_are_those_of_torch_to_the_bit(mine, its, settings) -> None:
    first = nn.Linear(3, 2)
    networks = [copy.deepcopy(first) for _ in range(2)]
    optimizers = [
        kind(network.parameters(), lr=0.1, **settings)
        for kind, network in zip((mine, its), networks, strict=True)
    ]
    for _ in range(3):
        x = torch.randn(4, 3)
        for network, optimizer in zip(networks, optimizers, strict=True):
            descend(optimizer, network(x).square().mean())
    for before, *after in zip(*(network.parameters() for network in (first, *networks)), strict=True):
        assert after[0].equal(after[1])
        assert not after[0].equal(before)
        assert after[0].requires_grad


def by_tensorflows_rmsprop(weight: float, gradients: list[float], lr: float, eps: float) -> float:
    """TensorFlow's rule for one number."""
    square = 1.0
    for gradient in gradients:
        square = 0.9 * square + 0.1 * gradient * gradient
        weight -= lr * gradient / math.sqrt(square + eps)
    return weight


@pytest.mark.parametrize("updates", [1, 10])
@pytest.mark.parametrize("eps", [1e-10, 0.3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rmsprop_is_that_of_tensorflow(updates: int, eps: float, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 2).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    first, gradients = layer.weight.detach().clone(), torch.randn(updates, 4, 3, 2, 2)
    optimizer = RMSProp([layer.weight], lr=0.1, eps=eps)
    for gradient in gradients:
        descend(optimizer, (layer.weight * gradient).sum())
    pairs = zip(first.flatten().tolist(), gradients.flatten(1).T.tolist(), strict=True)
    expected = torch.tensor([by_tensorflows_rmsprop(w, each, 0.1, eps) for w, each in pairs])
    torch.testing.assert_close(layer.weight.detach().flatten(), expected)


def test_rmsprop_leaves_what_has_no_gradient() -> None:
    moved, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    moved.grad = torch.ones(2)
    RMSProp([moved, still], lr=0.1).step()
    assert still.equal(torch.ones(2))
    assert not moved.equal(torch.ones(2))
