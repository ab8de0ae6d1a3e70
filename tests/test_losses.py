import math

import pytest
import torch
from torch import Tensor, nn

from anomaly_bench.losses import bce, gradient_penalty, nt_xent


def between_rows(real: Tensor, fake: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    mix = torch.rand(len(real), *[1] * (real.dim() - 1))
    return mix * real + (1 - mix) * fake


@pytest.mark.parametrize(("target", "sign"), [(1, -1), (0, 1)])
def test_bce_is_the_mean_of_softplus(target: int, sign: int) -> None:
    logits = torch.tensor([[-3.0, 0.0], [2.0, 40.0]])
    expected = sum(math.log1p(math.exp(sign * value)) for value in (-3.0, 0.0, 2.0, 40.0)) / 4
    assert bce(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_bce_of_half_precision_logits_is_float32() -> None:
    loss = bce(torch.tensor([-200.0, 0.3], dtype=torch.bfloat16), 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((200 + math.log1p(math.exp(-0.30078125))) / 2, rel=1e-6)


def test_penalty_of_a_linear_critic_knows_only_its_norm() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    real, fake = torch.randn(7, 2), torch.randn(7, 2)
    penalty = gradient_penalty(lambda u: u @ weight, real, fake)
    penalty.backward()
    assert penalty.item() == pytest.approx((5 - 1) ** 2)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * (5 - 1) * torch.tensor([3.0, 4.0]) / 5)


def test_penalty_takes_one_mix_and_one_norm_for_each_row() -> None:
    real, fake = torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3, 3)
    u = between_rows(real, fake, seed=3)
    expected = sum((row.square().sum().sqrt().item() - 1) ** 2 for row in u) / 6
    torch.manual_seed(3)
    penalty = gradient_penalty(lambda u: u.square().flatten(1).sum(1) / 2, real, fake)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)


def test_penalty_of_a_flat_critic_has_finite_gradients() -> None:
    weight = torch.zeros(2, requires_grad=True)
    gradient_penalty(lambda u: u @ weight, torch.randn(3, 2), torch.randn(3, 2)).backward()
    assert weight.grad is not None
    assert torch.isfinite(weight.grad).all()


def test_penalty_is_the_same_under_autocast() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    real, fake = torch.randn(4, 5), torch.randn(4, 5)
    torch.manual_seed(1)
    plain = gradient_penalty(critic, real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradient_penalty(critic, real, fake)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_penalty_gives_the_fake_rows_no_gradient() -> None:
    fake = torch.randn(3, 2, requires_grad=True)
    weight = torch.ones(2, requires_grad=True)
    gradient_penalty(lambda u: (u * weight).square().sum(1), torch.randn(3, 2), fake).backward()
    assert fake.grad is None


@pytest.mark.parametrize("pairs", [1, 5])
def test_nt_xent_is_its_equation(pairs: int) -> None:
    torch.manual_seed(0)
    z = torch.randn(2 * pairs, 4)
    total = 0.0
    for i, a in enumerate(z):
        likeness = [math.exp(float(a @ b / a.norm() / b.norm()) / 0.3) for b in z]
        total -= math.log(likeness[(i + pairs) % (2 * pairs)] / (sum(likeness) - likeness[i])) / (2 * pairs)
    assert nt_xent(z, 0.3).item() == pytest.approx(total, rel=1e-5, abs=1e-6)


def test_nt_xent_is_computed_in_float32_and_has_finite_gradients() -> None:
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, 0.5)
    assert loss.item() == nt_xent(z, 0.5).item()
    loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert z.grad.any()
