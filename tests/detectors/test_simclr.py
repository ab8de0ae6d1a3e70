import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import assert_close, auroc, digits, first_stage
from layers import layers_of
from sklearn.svm import OneClassSVM
from steps import batch_of, noise

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.ocsvm import OCSVM
from anomaly_bench.detectors.simclr import SimCLR
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.augmentations import DRAWS, augment
from anomaly_bench.training.control import untrained
from anomaly_bench.training.trainer import Trainer

SHAPE = (1, 8, 8)


def small(shape=SHAPE, **settings) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(shape, **{"width": 2, "simclr_dim": 6, "batch_size": 8, "views": 3} | settings)


def fitted(**settings) -> tuple[SimCLR, torch.Tensor]:
    """One whose bank is of 10 rows of noise, and these rows."""
    detector, train = small(**settings).eval(), noise(10, SHAPE)
    with torch.no_grad():
        list(detector.stages(Rows(train)))
    return detector, train


# ------------------------------------------------------------------------------ learning


def test_one_update_equals_the_transcription():
    detector, x = small(lr=0.5, weight_decay=0.01), noise(8, SHAPE)
    stage = first_stage(detector, x)
    assert (stage.epochs, stage.batch_size, stage.scorable) == (1000, 8, False)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    views = augment(torch.cat([x, x]), torch.rand(16, DRAWS), flip=True)
    z = plain.head(plain.features(views))
    loss = 0.0
    for i in range(16):
        j = (i + 8) % 16
        s = [(z[i] * z[k]).sum() / (z[i].norm() * z[k].norm()) / 0.5 for k in range(16)]
        loss = loss - torch.log(s[j].exp() / sum(s[k].exp() for k in range(16) if k != i)) / 16
    loss.backward()
    assert losses["nt_xent"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert losses["rate"].item() == pytest.approx(0.5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        w, g = theirs.detach(), theirs.grad
        long, steep = w.norm(), g.norm()
        scale = 1e-3 * long / (steep + 0.01 * long + 1e-8) if long > 0 and steep > 0 else 1.0
        torch.testing.assert_close(ours, w - 0.5 * scale * (g + 0.01 * w), rtol=1e-3, atol=1e-5)
        assert not torch.equal(ours, before)


def test_the_head_has_a_layer_as_wide_as_the_features_and_128_outputs():
    assert layers_of(SimCLR((3, 32, 32)).head) == ["linear 512-512, relu", "linear 512-128"]


def test_two_views_of_an_image_are_half_a_batch_apart():
    detector, x = small(), noise(4, SHAPE)
    torch.manual_seed(1)
    views = detector.two_views(x)
    assert views.shape == (8, *SHAPE)
    assert all(not torch.equal(views[i], views[i + 4]) for i in range(4))
    torch.manual_seed(1)
    alike = detector.two_views(x[:1].expand(4, -1, -1, -1))
    assert torch.equal(alike[[0, 4]], views[[0, 4]])


def test_rotations_are_images_of_their_own():
    detector, x = small(shifts="rotations"), noise(3, SHAPE)
    torch.manual_seed(1)
    views = detector.two_views(x)
    torch.manual_seed(1)
    turned = torch.cat([x, x.rot90(1, (2, 3)), x.rot90(2, (2, 3)), x.rot90(3, (2, 3))])
    expected = augment(torch.cat([turned, turned]), torch.rand(24, DRAWS), flip=True)
    assert torch.equal(views, expected)


def test_the_rate_grows_and_falls():
    detector = small(lr=0.1, warm_up=10, epochs=100)
    rates = [detector.rate(torch.tensor(float(epoch))).item() for epoch in range(101)]
    assert rates[:3] == pytest.approx([0.1, 0.19, 0.28])
    assert rates[10] == max(rates) == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2, rel=1e-4)
    assert small(lr=0.1, warm_up=0).rate(torch.tensor(0.0)).item() == pytest.approx(1.0)


def test_the_rate_follows_the_updates_that_were_made():
    detector, x = small(lr=0.1, warm_up=2), noise(16, SHAPE)
    step = first_stage(detector, x).step
    rates = [step(batch_of(x[:8]))["rate"].item() for _ in range(3)]
    assert rates == pytest.approx([0.1, 0.1 * (1 + 9 / 4), 0.1 * (1 + 18 / 4)])
    assert detector.state_dict()["steps"] == 3


# ------------------------------------------------------------------------------ scores


def test_the_score_is_the_likeness_to_the_nearest_times_the_length():
    detector, train = fitted()
    x = noise(5, SHAPE, seed=2)

    def embedded(image):
        views = [augment(image[None], u[None], flip=False, area=(0.54, 0.54)) for u in detector.draws]
        return sum(detector.head(detector.features(view))[0] for view in views) / 3

    with torch.no_grad():
        bank = [embedded(image) for image in train]
        expected = []
        for image in x:
            z = embedded(image)
            cosines = [float((z * m).sum() / (z.norm() * m.norm())) for m in bank]
            expected.append(-max(cosines) * float(z.norm()))
        assert_close(detector.score(x), torch.tensor(expected), atol=1e-5)


def test_a_training_image_is_not_its_own_neighbour():
    detector, train = fitted()
    with torch.no_grad():
        z = detector.embed(train)
        cosines = torch.stack([torch.cosine_similarity(z, one[None]) for one in z]).fill_diagonal_(-1)
        assert_close(detector.score(train), -cosines.amax(1) * z.norm(dim=1), atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):  # where its direction is not what is kept of it
            z, scores = detector.embed(train), detector.score(train)
        alike = (z @ detector.bank.T).fill_diagonal_(-torch.inf)
        assert_close(scores, -alike.amax(1), atol=1e-5)


def test_views_of_a_score_are_the_same_for_all_and_always():
    detector, _ = fitted()
    x = noise(1, SHAPE, seed=2).expand(4, -1, -1, -1)
    with torch.no_grad():
        torch.manual_seed(7)
        scores = detector.score(x)
        assert scores.unique().numel() == 1
        assert torch.equal(detector.score(x), scores)
    torch.manual_seed(9)
    assert torch.equal(small().draws, detector.draws)
    assert len(detector.draws.unique(dim=0)) == 3


def test_no_views_are_the_image_itself():
    detector, train = fitted(views=0)
    x = noise(5, SHAPE, seed=2)
    with torch.no_grad():
        z, bank = detector.head(detector.features(x)), detector.head(detector.features(train))
        expected = -(z @ (bank / bank.norm(dim=1, keepdim=True)).T).amax(1)
        assert_close(detector.score(x), expected, atol=1e-5)


def test_before_training_there_is_no_score():
    x = noise(3, SHAPE)
    with torch.no_grad():
        explained = small().eval().explain(x)
    assert not explained.score.any()
    assert explained.features.shape == (3, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (5,)}, r"needs images, found rows of shape \(5,\)"),
        ({"shifts": "cutperm"}, r"model\.shifts=cutperm: allowed are none, rotations"),
        ({"shape": (1, 8, 9), "shifts": "rotations"}, r"data\.image_size: found images of 8 x 9"),
        ({"tau": 0.0}, r"model\.tau=0\.0"),
        ({"views": -1}, r"model\.views=-1"),
        ({"warm_up": -1}, r"model\.warm_up=-1"),
        ({"resize_factor": 1.5}, r"model\.resize_factor=1\.5"),
        ({"simclr_dim": 0}, r"model\.simclr_dim=0"),
    ],
)
def test_what_is_not_allowed_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)


# ------------------------------------------------------------------------------ a one-class SVM on its features


def test_the_svm_is_scikit_learns_on_features_of_length_one():
    train, test = noise(40, SHAPE), noise(6, SHAPE, seed=2)
    detector = OCSVM(
        SHAPE, nu=0.5, gamma_factor=10.0, unit=True, pca=None, features=lambda shape: small(shape, views=0)
    )
    with torch.no_grad():
        list(detector.eval().stages(Rows(train)))
        given = [detector.features.features(x).double() for x in (train, test)]
        learned, asked = ((f / f.norm(dim=1, keepdim=True)).numpy() for f in given)
        svm = OneClassSVM(gamma=10 / (np.var(learned) * 16)).fit(learned)
        np.testing.assert_allclose(
            detector.score(test).numpy(), -svm.decision_function(asked), rtol=1e-3, atol=1e-5
        )


def test_a_factor_that_is_none_is_refused():
    with pytest.raises(SettingError, match=r"model\.gamma_factor=0"):
        OCSVM(SHAPE, gamma_factor=0)


# ------------------------------------------------------------------------------ real data


def test_learning_tells_new_twos_from_other_digits():
    """On the mean of some seeds: so small a network is as easily a little worse as a lot better."""
    train, test, anomalous = digits(normal=2, size=8)

    def build() -> OCSVM:
        settings = {"tau": 0.2, "flip": False, "lr": 0.1, "warm_up": 2, "batch_size": 40, "epochs": 20}
        features = partial(small, width=4, simclr_dim=16, views=0, **settings)
        return OCSVM(train.shape, nu=0.5, gamma_factor=10.0, unit=True, pca=None, features=features)

    control, _ = untrained(build, train, seed=0)
    detectors = [build() for _ in range(4)]
    for seed, detector in enumerate(detectors):
        Trainer(device="cpu", precision="fp32").learn(detector, train, seed=seed)
    for part in (lambda detector: detector, lambda detector: detector.features):
        before = auroc(part(control), test, anomalous)
        after = np.mean([auroc(part(detector), test, anomalous) for detector in detectors])
        assert after > before
