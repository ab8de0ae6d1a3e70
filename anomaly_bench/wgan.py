"""One step of a Wasserstein GAN with gradient penalty, shared by the methods that generate with one.

Gulrajani, Ahmed, Arjovsky, Dumoulin, Courville, NeurIPS 2017, https://arxiv.org/abs/1704.00028, algorithm 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from anomaly_bench.detector import descend, detached
from anomaly_bench.losses import gradient_penalty

Function = Callable[[Tensor], Tensor]


def wgan_gp_step(
    x: Tensor,
    prior: Function,
    generate: Function,
    criticise: Function,
    g: Optimizer,
    d: Optimizer,
    n_critic: int,
    lambda_gp: float,
) -> dict[str, Tensor]:
    """`n_critic` updates of the critic, each on its share of the rows, then one of the generator.

    Args:
        x: rows `[B, ...]`, dealt out to the updates of the critic.
        prior: gives as many codes as the rows it is given.
        generate: gives rows of codes.
        criticise: gives values `[N]` of rows `[N, ...]`, each row's alone.
        g, d: optimisers of the generator and of the critic.
        n_critic: fewer where there are fewer rows.
        lambda_gp: weight of the penalty.

    Returns:
        The distance D(x) - D(G(z)) and the penalty, both averaged over the critic's updates, and L_G.
    """
    reals = x.tensor_split(min(n_critic, len(x)))
    critic_losses = []
    for real in reals:
        with torch.no_grad():
            fake = generate(prior(real))
        wasserstein = criticise(real).float().mean() - criticise(fake).float().mean()
        penalty = gradient_penalty(criticise, real, fake)
        descend(d, lambda_gp * penalty - wasserstein)
        critic_losses.append(torch.stack((wasserstein, penalty)).detach())
    l_g = -criticise(generate(prior(reals[-1]))).float().mean()
    descend(g, l_g)
    wasserstein, penalty = torch.stack(critic_losses).mean(0)
    return detached(wasserstein=wasserstein, penalty=penalty, generator=l_g)
