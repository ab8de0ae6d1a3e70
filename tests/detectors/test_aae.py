import copy

import pytest
import torch
from layers import layers_of
from steps import (
    assert_same_weights,
    auroc_before_and_after,
    batch_of,
    descend_plainly,
    moved,
    networks,
    noise,
    stage_of,
)
from torch import Tensor, nn

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.aae import AAE
from anomaly_bench.errors import SettingError

SHAPE = (1, 16, 16)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> AAE:
    torch.manual_seed(0)
    defaults = {"nz": 5, "width": 2, "n_critic": 2, "warmup": 3, "warmup_epochs": 1, "epochs": 3, "lr": 1e-3}
    return AAE(shape, **defaults | settings)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(3, shape)
    score, residual, reconstruction, code = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert code.shape == (3, 5)
    torch.testing.assert_close(detector.score(x), score)


def test_the_critic_of_codes_has_the_layers_of_the_code() -> None:
    assert layers_of(small(nz=128).criticise) == [
        "linear 128-200, leaky 0.2",
        "linear 200-400, leaky 0.2",
        "linear 400-1",
    ]


def test_four_blocks_at_64_pixels_end_with_the_256_filters_of_the_code() -> None:
    detector = AAE((1, 64, 64))
    wide = [parameter.shape[0] for parameter in detector.encode.parameters() if parameter.dim() == 4]
    assert (min(wide), max(wide)) == (16, 256)
    assert layers_of(detector.encode)[-1] == "linear 4096-128"
    assert layers_of(detector.generate)[0] == "linear 128-4096, bn eps 0.001, relu, nearest x2"


def test_encoder_and_generator_are_residual_with_the_filters_of_the_code() -> None:
    detector = AAE((1, 32, 32))
    assert layers_of(detector.encode) == [
        "conv 3/1/1 1-16, bn eps 0.001, relu",
        "conv 3/1/1 16-16 no bias, bn eps 0.001, relu",
        "conv 3/1/1 16-32, avgpool2d, avgpool2d",
        "conv 1/1/0 16-32, bn eps 0.001, relu",
        "conv 3/1/1 32-32 no bias, bn eps 0.001, relu",
        "conv 3/1/1 32-64, avgpool2d, avgpool2d",
        "conv 1/1/0 32-64, bn eps 0.001, relu",
        "conv 3/1/1 64-64 no bias, bn eps 0.001, relu",
        "conv 3/1/1 64-128, avgpool2d, avgpool2d",
        "conv 1/1/0 64-128",
        "linear 2048-128",
    ]
    assert layers_of(detector.generate) == [
        "linear 128-2048, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 128-64 no bias, bn eps 0.001, relu",
        "conv 3/1/1 64-64",
        "conv 1/1/0 128-64, nearest x2, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 64-32 no bias, bn eps 0.001, relu",
        "conv 3/1/1 32-32",
        "conv 1/1/0 64-32, nearest x2, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 32-16 no bias, bn eps 0.001, relu",
        "conv 3/1/1 16-16",
        "conv 1/1/0 32-16, nearest x2, bn eps 0.001, relu",
        "conv 3/1/1 16-1, tanh",
    ]


def test_the_critic_begins_small() -> None:
    layers = [layer for layer in small(nz=128).criticise if isinstance(layer, nn.Linear)]
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)  # of 400 weights: deviation 0.035
        assert not layer.bias.any()
    assert len(layers) == 3


def critic_loss(criticise, real: Tensor, fake: Tensor, adversary: str) -> Tensor:
    if adversary == "gan":
        p, q = torch.sigmoid(criticise(real)), torch.sigmoid(criticise(fake))
        return -p.log().mean() - (1 - q).log().mean()
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(criticise(between).sum(), between, create_graph=True)
    penalty = ((slope.square().sum(1).sqrt() - 1) ** 2).mean()
    return criticise(fake).mean() - criticise(real).mean() + 10 * penalty


@pytest.mark.parametrize("adversary", ["wgan", "gan"])
@pytest.mark.parametrize("w_code", [0.5, 0.0])
def test_one_step_is_that_of_the_code(adversary: str, w_code: float) -> None:
    detector, x = small(adversary=adversary, w_code=w_code), noise(8, SHAPE)
    encode, generate, criticise = (
        copy.deepcopy(n).train() for n in (detector.encode, detector.generate, detector.criticise)
    )
    stage = stage_of(detector, 1, SHAPE)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    nets = [*encode.parameters(), *generate.parameters()]
    a, d, e = (
        torch.optim.Adam(ps, lr=1e-3, betas=(0.5, 0.9))
        for ps in (nets, list(criticise.parameters()), list(encode.parameters()))
    )
    z = encode(x)
    rebuilt = generate(z)
    error = torch.stack([((x[i] - rebuilt[i]) ** 2).sum().sqrt() for i in range(8)]).mean()
    l_a = error
    if w_code:
        encode.eval()
        constraint = ((z - encode(rebuilt)) ** 2).sum(1).mean()
        encode.train()
        l_a = error + w_code * constraint
        assert losses["constraint"].item() == pytest.approx(constraint.item(), rel=1e-4)
    descend_plainly(a, l_a)
    generate_after = copy.deepcopy(generate)
    for kept, p in zip(generate_after.parameters(), generate.parameters(), strict=True):
        kept.grad = p.grad.clone()
    codes = encode(x)
    real = torch.randn(8, 5)
    l_d = []
    for _ in range(2):
        l_d.append(critic_loss(criticise, real, codes.detach(), adversary))
        descend_plainly(d, l_d[-1])
    d_after = copy.deepcopy(criticise)
    for kept, p in zip(d_after.parameters(), criticise.parameters(), strict=True):
        kept.grad = p.grad.clone()
    values = criticise(codes)
    l_e = -values.mean() if adversary == "wgan" else -torch.sigmoid(values).log().mean()
    descend_plainly(e, l_e)

    assert losses["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
    assert losses["critic"].item() == pytest.approx(l_d[0].item(), abs=1e-5)
    assert losses["encoder"].item() == pytest.approx(l_e.item(), abs=1e-4)
    assert_same_weights(detector.criticise, d_after)
    assert_same_weights(detector.generate, generate_after)
    assert_same_weights(detector.encode, encode)


def test_the_constraint_reaches_encoder_and_generator() -> None:
    detector = small().train()
    _, constraint = detector.autoencoder_losses(noise(8, SHAPE))
    for network in (detector.encode, detector.generate):
        gradients = torch.autograd.grad(constraint, list(network.parameters()), retain_graph=True)
        assert sum(g.abs().sum() for g in gradients) > 0


def test_all_networks_move_and_the_critic_more_often_in_the_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = small(), batch_of(noise(8, SHAPE))
    names = moved(detector, stage_of(detector, 1, SHAPE).step, batch)
    assert networks(names) == {"encode", "generate", "criticise"}
    losses, calls = detector.critic_loss, []
    monkeypatch.setattr(detector, "critic_loss", lambda *a: (calls.append(1), losses(*a))[1])
    counts = []
    for number in (0, 1):
        calls.clear()
        stage_of(detector, number, SHAPE).step(batch)
        counts.append(len(calls))
    assert counts == [6, 2]


def test_both_stages_make_all_epochs() -> None:
    rows = Rows(torch.zeros(8, *SHAPE, dtype=torch.uint8))
    assert [stage.epochs for stage in small(warmup_epochs=2, epochs=7).stages(rows)] == [2, 5]


def test_the_score_is_the_mean_residual() -> None:
    detector, x = small().eval(), noise(5, SHAPE)
    rebuilt = detector.generate(detector.encode(x))
    expected = torch.stack([(x[i] - rebuilt[i]).abs().mean() for i in range(5)])
    torch.testing.assert_close(detector.score(x), expected)
    torch.testing.assert_close(detector.explain(x).map, (x - rebuilt).abs()[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversary": "kl"}, "model.adversary=kl: allowed are wgan, gan"),
        ({"warmup_epochs": 4}, "model.warmup_epochs=4: .*model.epochs=3"),
        ({"n_critic": 0}, "model.n_critic=0"),
        ({"shape": (1, 28, 28)}, "data.image_size"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


@pytest.mark.parametrize("settings", [{}, {"adversary": "gan", "w_code": 0.0, "n_critic": 1}])
def test_learns_digits(settings: dict) -> None:
    plan = {"nz": 8, "width": 4, "batch_size": 12, "lr": 2e-3, "epochs": 6, "warmup_epochs": 0}
    untrained, trained = auroc_before_and_after(small(**plan | settings), 16)
    assert trained > max(0.8, untrained + 0.2)
