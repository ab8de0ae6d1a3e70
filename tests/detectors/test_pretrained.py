import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from PIL import Image

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.isolation_forest import IsolationForest
from anomaly_bench.detectors.knn import KNN
from anomaly_bench.detectors.mahalanobis import Mahalanobis
from anomaly_bench.detectors.ocsvm import OCSVM
from anomaly_bench.detectors.pretrained import Pretrained
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.backbone import packaged
from anomaly_bench.training.control import untrained

SMALL = partial(Pretrained, input_size=32)


def test_weights_are_random_until_it_learns_and_then_those_of_the_package():
    state = packaged("tf_efficientnet_lite0")
    features = SMALL((1, 8, 8))
    learn(features, digits(size=8)[0])
    for name, x in features.backbone.net.state_dict().items():
        assert torch.equal(x, state[name]), name
    fresh = SMALL((1, 8, 8)).backbone.net.state_dict()
    assert not torch.equal(fresh["conv_stem.weight"], state["conv_stem.weight"])


def test_kept_state_loads_without_the_weights(tmp_path):
    train, test, _ = digits(size=8)
    kept = learn(KNN(train.shape, features=SMALL), train)
    other = KNN(train.shape, features=partial(SMALL, weights="not there")).eval()
    other.load_state_dict(kept.state_dict())
    x = test.take(torch.arange(5))
    with torch.no_grad():
        assert torch.equal(other.score(x), kept.eval().score(x))
    with pytest.raises(SettingError, match=r"model\.features\.weights=not there"):
        learn(other, train)


@pytest.mark.parametrize(
    "build",
    [KNN, Mahalanobis, IsolationForest, partial(OCSVM, pca=None)],
    ids=["knn", "mahalanobis", "isolation_forest", "ocsvm"],
)
def test_any_shallow_method_tells_digits_by_them(build):
    train, test, anomalous = digits(normal=0, size=8)
    torch.manual_seed(0)
    detector = build(train.shape, features=SMALL)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.9


def photographs() -> tuple[Rows, Rows, np.ndarray]:
    """Cars to learn; other cars and as many photographs of other things to score, and which those are."""
    root = os.environ.get("ANOMALY_BENCH_DATA")
    folder = Path(root or "") / "cifar10/train"
    if not root or not folder.is_dir():
        pytest.skip("needs class folders of CIFAR-10 under ANOMALY_BENCH_DATA")

    def some(name: str, number: int) -> list[np.ndarray]:
        return [np.asarray(Image.open(file)) for file in sorted((folder / name).iterdir())[:number]]

    cars = some("automobile", 100)
    others = [x for name in ("airplane", "bird", "deer", "frog", "ship", "horse") for x in some(name, 8)]
    images = torch.from_numpy(np.stack(cars + others)).permute(0, 3, 1, 2).contiguous()
    return Rows(images[:50]), Rows(images[50:]), np.arange(98) >= 50


def test_imagenet_tells_cars_from_other_things_and_random_weights_do_not():
    train, test, anomalous = photographs()

    def build() -> KNN:
        torch.manual_seed(0)
        return KNN(train.shape, normalise=True, features=partial(Pretrained, input_size=64))

    control, how = untrained(build, train, 0)
    assert how == "random weights in place of pretrained ones"
    assert control.bank.shape == (50, 1280)
    found, before = auroc(learn(build(), train), test, anomalous), auroc(control, test, anomalous)
    assert found > 0.9
    assert found > before + 0.2


def test_patches_make_maps_of_any_image():
    train = Rows(torch.randint(0, 256, (4, 3, 24, 40), dtype=torch.uint8))
    detector = learn(
        KNN(train.shape, k=1, max_patches=50, features=partial(SMALL, patches=True)), train
    ).eval()
    with torch.no_grad():
        explained = detector.explain(train.take(torch.arange(4)))
    assert detector.bank.shape == (50, 40 + 112)
    assert explained.map.shape == (4, 24, 40)
    assert explained.features.shape == (4, 152)


def test_patches_are_for_knn():
    train, _, _ = digits(size=8)
    for build in (Mahalanobis, IsolationForest, OCSVM):
        with pytest.raises(SettingError, match=r"model\.features\.patches=true: this model takes one vector"):
            learn(build(train.shape, features=partial(SMALL, patches=True)), train)
    with pytest.raises(SettingError, match=r"model\.features\.layers=\[\]"):
        SMALL(train.shape, patches=True, layers=[])


def test_alone_they_have_no_score():
    with pytest.raises(SettingError, match="no score; allowed is to put them under the features of knn"):
        SMALL((1, 8, 8)).score(torch.zeros(1, 1, 8, 8))
