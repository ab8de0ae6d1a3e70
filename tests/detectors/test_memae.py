import copy
import math

import pytest
import torch
from autoencoding import assert_close, before_and_after, first_stage
from layers import layers_of
from steps import assert_same_weights, batch_of, descend_plainly, noise
from torch.nn.functional import cosine_similarity

from anomaly_bench.detectors.memae import MemAE
from anomaly_bench.errors import SettingError


def small(shape=(1, 16, 16), **settings) -> MemAE:
    torch.manual_seed(0)
    return MemAE(shape, **{"channels": (2, 3, 4), "memory": 10, "lr": 1e-3} | settings)


def weights_by(detector, z):
    return detector.address(z, detector.memory)


def weights_of(z, items, shrink, similarity="cosine"):
    """Equations 3 to 7, one query and one item at a time."""
    rows = []
    for query in z:
        d = [cosine_similarity(query, m, dim=0) if similarity == "cosine" else query @ m for m in items]
        exp = torch.stack(d).exp()
        w = exp / exp.sum()
        kept = torch.where(w > shrink, w, torch.zeros(()))
        rows.append(kept / kept.sum().clamp_min(1e-12))
    return torch.stack(rows)


@pytest.mark.parametrize("query", ["code", "position"])
def test_one_update_equals_the_transcription(query):
    # A kernel of 1 on one channel before batch norm has no gradient but rounding.
    detector = small(query=query, alpha=0.3, kernels=(3, 3, 3))
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise()
    losses = first_stage(detector, x).step(batch_of(x))

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    z = plain.encode(x)  # [8, 4, 2, 2]
    queries = z.reshape(8, 16) if query == "code" else z.permute(0, 2, 3, 1).reshape(32, 4)
    w = weights_of(queries, plain.memory, 1 / 10)
    mixed = w @ plain.memory
    mixed = mixed.reshape(z.shape) if query == "code" else mixed.reshape(8, 2, 2, 4).permute(0, 3, 1, 2)
    reconstruction = ((x - plain.decode(mixed)) ** 2).mean()
    entropy = -(w * (w + 1e-12).log()).sum(1).mean()
    (reconstruction + 0.3 * entropy).backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert losses["entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)
    names = [name for name, _ in detector.named_parameters()]
    for name, ours, theirs, before in zip(
        names, detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before), name
        assert_close(ours, theirs, atol=1e-4)  # of an update of 1e-3


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_items_below_lambda_are_left_out_and_the_others_sum_to_one(similarity):
    detector = small(similarity=similarity, shrink=1.2)
    z = noise(6, (16,)) * 3
    with torch.no_grad():
        w = weights_by(detector, z)
        assert_close(w, weights_of(z, detector.memory, 0.12, similarity))
    assert (w == 0).any()
    assert ((w.sum(1) - 1).abs() < 1e-5).logical_or(w.sum(1) == 0).all()


def test_a_lambda_of_3_over_n_removes_every_item_at_first():
    z = noise(6, (16,))
    assert not weights_by(small(memory=100, shrink=3.0), z).any()
    assert (weights_by(small(memory=100), z).sum(1) > 0.999).all()


def test_what_is_rebuilt_is_a_mix_of_what_is_remembered():
    detector = small().eval()
    with torch.no_grad():
        detector.memory.copy_(torch.eye(10, 16) * 5)
        detector.encode = torch.nn.Identity()
        z = torch.zeros(4, 4, 2, 2)
        z.view(4, 16)[torch.arange(4), torch.tensor([0, 3, 3, 9])] = 1.0
        detector.shrink = 0.15
        rebuilt, w = detector(z)
        remembered = detector.decode(detector.memory.view(10, 4, 2, 2))
    assert w.argmax(1).tolist() == [0, 3, 3, 9]
    assert_close(w.amax(1), torch.ones(4))
    assert_close(rebuilt, remembered[[0, 3, 3, 9]])


def test_score_and_explanation():
    detector, x = small(query="position").eval(), noise(5)
    with torch.no_grad():
        rebuilt, _ = detector(x)
        explained = detector.explain(x)
        assert_close(detector.score(x), ((x - rebuilt) ** 2).flatten(1).sum(1))
        assert_close(explained.score, detector.score(x))
    assert explained.map.shape == (5, 16, 16)
    assert explained.features.shape == (5, 10)


def test_memory_starts_as_in_the_official_code():
    detector = MemAE((1, 28, 28))
    assert detector.memory.shape == (100, 64 * 4 * 4)
    assert 0.95 / 32 < detector.memory.abs().max() <= 1 / math.sqrt(1024)
    assert MemAE((3, 32, 32), query="position").memory.shape == (100, 64)


def test_layers_for_mnist_are_those_of_re_implementations():
    detector = MemAE((1, 28, 28))
    first, *others = layers_of(detector.encode)
    assert first == "maxpool 1/2"  # every second pixel: the stride of the kernel of 1 that follows
    assert others == [
        "conv 1/1/0 1-16 no bias, bn, relu",
        "conv 3/2/1 16-32 no bias, bn, relu",
        "conv 3/2/1 32-64 no bias, bn, relu",
    ]
    assert layers_of(detector.decode) == [
        "convT 3/2/1 64-32 no bias, bn, relu",
        "convT 3/2/1 32-16 no bias, bn, relu",
        "convT 3/2/1 16-1",
    ]


def test_layers_for_cifar10_and_kdd_are_the_papers():
    detector = MemAE((3, 32, 32), channels=(64, 128, 128, 256), kernels=(3, 3, 3, 3))
    assert layers_of(detector.encode) == [
        "conv 3/2/1 3-64 no bias, bn, relu",
        "conv 3/2/1 64-128 no bias, bn, relu",
        "conv 3/2/1 128-128 no bias, bn, relu",
        "conv 3/2/1 128-256 no bias, bn, relu",
    ]
    detector = MemAE((120,), network="dense")
    *tanh, code = layers_of(detector.encode)
    assert tanh == ["linear 120-60, tanh", "linear 60-30, tanh", "linear 30-10, tanh"]
    assert code == "linear 10-3"
    *tanh, rebuilt = layers_of(detector.decode)
    assert tanh == ["linear 3-10, tanh", "linear 10-30, tanh", "linear 30-60, tanh"]
    assert rebuilt == "linear 60-120"


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 20), (2, 64, 64)])
def test_images_of_any_size(shape):
    detector = small(shape).eval()
    assert detector(noise(2, shape))[0].shape == (2, *shape)


def test_rows():
    detector = small((7,), network="dense").eval()
    assert detector(noise(3, (7,)))[0].shape == (3, 7)
    assert isinstance(detector.encode[1][1], torch.nn.Tanh)


def test_without_a_memory_the_code_itself_is_decoded():
    detector = small(memory=0)
    plain, x = copy.deepcopy(detector).train(), noise()
    losses = first_stage(detector, x).step(batch_of(x))
    reconstruction = ((x - plain.decode(plain.encode(x))) ** 2).mean()
    descend_plainly(torch.optim.Adam(plain.parameters(), lr=1e-3), reconstruction)
    assert losses.keys() == {"reconstruction"}
    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert_same_weights(detector, plain)
    explained = detector.eval().explain(x)
    assert_close(explained.reconstruction, detector.decode(detector.encode(x)))
    assert_close(explained.features, detector.encode(x).flatten(1))


def test_learning_tells_twos_from_other_digits():
    before, after = before_and_after(
        lambda shape: MemAE(shape, channels=(8, 16, 32), kernels=(3, 3, 3), batch_size=20, epochs=40, lr=3e-3)
    )
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "fc"}, "model.network=fc: allowed are conv, dense"),
        ({"similarity": "l2"}, "model.similarity=l2: allowed are cosine, dot"),
        ({"query": "pixel"}, "model.query=pixel: allowed are code, position"),
        ({"query": "position", "network": "dense"}, "model.query=position: it needs model.network=conv"),
        ({"shrink": -1.0}, r"model.shrink=-1.0"),
        ({"memory": -1}, "model.memory=-1"),
        ({"kernels": (3, 3)}, r"model.kernels=\(3, 3\): needed is an odd number"),
        ({"kernels": (3, 3, 2)}, "needed is an odd number"),
        ({"shape": (7,)}, "model.network=conv: it needs images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
