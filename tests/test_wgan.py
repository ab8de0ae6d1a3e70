import torch
from torch import nn

from anomaly_bench.detector import adam
from anomaly_bench.wgan import wgan_gp_step


def test_rows_are_dealt_out_to_the_critics_updates_and_the_generator_moves_once() -> None:
    torch.manual_seed(0)
    generate, critic, seen = nn.Linear(2, 3), nn.Linear(3, 1), []

    def criticise(x: torch.Tensor) -> torch.Tensor:
        return critic(x).flatten()

    def prior(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return torch.randn(len(x), 2)

    g, d = adam(generate, lr=0.1), adam(critic, lr=0.1)
    losses = wgan_gp_step(torch.randn(7, 3), prior, generate, criticise, g, d, n_critic=3, lambda_gp=10.0)
    assert seen == [3, 2, 2, 2]
    assert set(losses) == {"wasserstein", "penalty", "generator"}
    assert not any(loss.requires_grad for loss in losses.values())
    assert g.state[generate.weight]["step"] == 1
    assert d.state[critic.weight]["step"] == 3


def test_the_critic_learns_to_put_real_above_generated() -> None:
    torch.manual_seed(0)
    generate, critic = nn.Linear(2, 3), nn.Linear(3, 1)
    nn.init.constant_(generate.bias, -2.0)
    g, d = adam(generate, lr=0.0), adam(critic, lr=0.05)
    x = torch.randn(60, 3) + 2
    for _ in range(40):
        losses = wgan_gp_step(
            x,
            lambda rows: torch.randn(len(rows), 2),
            generate,
            lambda rows: critic(rows).flatten(),
            g,
            d,
            2,
            10.0,
        )
    assert losses["wasserstein"] > 3  # at a slope of 1, means that are 4 apart in 3 columns give up to 6.9
    assert critic.weight.norm().item() < 1.5
