import copy

import pytest
import torch
from torch import Tensor, nn

from anomaly_bench.lars import LARS


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.randn(2))]


def test_updates_equal_the_transcription():
    ours, plain = parameters(), [p.detach().double() for p in parameters()]
    rate = torch.tensor(0.0)
    optimizer = LARS(ours, rate, momentum=0.9, weight_decay=0.01, trust=0.02)
    velocities = [torch.zeros_like(w) for w in plain]
    for number in range(4):
        rate.fill_(0.5 - 0.1 * number)
        for i, weight in enumerate(ours):
            torch.manual_seed(10 * number + i)
            weight.grad = torch.zeros_like(weight) if i == 2 and number == 1 else torch.randn_like(weight)
            g, w = weight.grad.double(), plain[i]
            long, steep = (w**2).sum() ** 0.5, (g**2).sum() ** 0.5
            scale = 0.02 * long / (steep + 0.01 * long + 1e-8) if long > 0 and steep > 0 else 1.0
            velocities[i] = 0.9 * velocities[i] + (g + 0.01 * w) * scale
            plain[i] = w - (0.5 - 0.1 * number) * velocities[i]
        optimizer.step()
    for weight, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=1e-7)


def test_steps_are_as_long_as_the_weights():
    weight = nn.Parameter(torch.ones(4))
    optimizer = LARS([weight], torch.tensor(1.0), momentum=0.0)
    for size in (1e-3, 1e3):
        before: Tensor = weight.detach().clone()
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
        assert (weight - before).norm().item() == pytest.approx(1e-3 * before.norm().item(), rel=1e-3)


def test_what_has_no_gradient_stays():
    weights = parameters()
    weights[0].grad = torch.ones(3, 4)
    LARS(weights, torch.tensor(1.0)).step()
    assert torch.equal(weights[2], parameters()[2])
    assert not torch.equal(weights[0], parameters()[0])


def test_its_state_is_kept():
    def moved(weights, optimizer):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        return weights

    weights = parameters()
    first = LARS(weights, torch.tensor(0.1), weight_decay=0.1)
    moved(weights, first)
    again = [nn.Parameter(weight.detach().clone()) for weight in weights]
    second = LARS(again, torch.tensor(0.1), weight_decay=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for ours, theirs in zip(moved(weights, first), moved(again, second), strict=True):
        assert torch.equal(ours, theirs)
