from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from anomaly_bench.compose import settings_of
from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Detector, Rows
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.ocsvm import OCSVM
from anomaly_bench.errors import SettingError
from anomaly_bench.training.trainer import Trainer


def digits(size: int = 32) -> tuple[Rows, Rows, np.ndarray]:
    """Ones to learn; other ones and zeros to score, and which are zeros."""
    data = load_digits()
    images = resized((data.images * 15.9).astype(np.uint8)[..., None], size)
    ones, zeros = images[data.target == 1], images[data.target == 0]
    test = torch.cat([ones[120:], zeros[:60]])
    return Rows(ones[:120]), Rows(test), np.arange(len(test)) >= len(ones) - 120


def learned(detector: Detector, train: Rows) -> Detector:
    Trainer(device="cpu", precision="fp32", max_epochs=1).learn(detector, train, seed=0)
    return detector


def flat(rows: Rows) -> np.ndarray:
    return rows.take(torch.arange(len(rows))).flatten(1).double().numpy()


@pytest.mark.parametrize("size", [8, 32])
def test_is_scikit_learns_with_pca(size: int) -> None:
    train, test, _ = digits(size)
    detector = learned(OCSVM(train.shape, nu=0.2), train)
    theirs = make_pipeline(PCA(0.95, svd_solver="full"), OneClassSVM(nu=0.2, gamma="scale")).fit(flat(train))
    scores = detector.score(test.take(torch.arange(len(test))))
    np.testing.assert_allclose(scores.numpy(), -theirs.decision_function(flat(test)), rtol=0, atol=1e-6)
    assert detector.explain(test.take(torch.arange(3))).features.shape == (3, theirs[0].n_components_)


@pytest.mark.parametrize("gamma", ["scale", 0.05])
def test_is_scikit_learns_without_pca(gamma: float | str) -> None:
    train, test, _ = digits(8)
    detector = learned(OCSVM(train.shape, pca=None, gamma=gamma), train)
    theirs = OneClassSVM(nu=0.1, gamma=gamma).fit(flat(train))
    scores = detector.score(test.take(torch.arange(len(test))))
    np.testing.assert_allclose(scores.numpy(), -theirs.decision_function(flat(test)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pca", [0.95, None])
def test_is_scikit_learns_on_standardised_columns(pca: float | None, tmp_path) -> None:
    train, test, _ = digits(8)
    train.x[:, :, :, 5] //= 20  # columns of unlike width
    detector = learned(OCSVM(train.shape, standardise=True, pca=pca), train)
    steps = [StandardScaler(), *([PCA(pca, svd_solver="full")] if pca else [])]
    theirs = make_pipeline(*steps, OneClassSVM(nu=0.1, gamma="scale")).fit(flat(train))
    x = test.take(torch.arange(len(test)))
    scores = detector.score(x)
    np.testing.assert_allclose(scores.numpy(), -theirs.decision_function(flat(test)), rtol=0, atol=1e-6)
    save_file(detector.state_dict(), tmp_path / "kept.safetensors")
    other = OCSVM(train.shape, standardise=True, pca=pca).eval()
    other.load_state_dict(load_file(tmp_path / "kept.safetensors"))
    assert torch.equal(other.score(x), scores)


def test_on_pretrained_features_it_standardises_and_leaves_out_nothing() -> None:
    settings, _ = settings_of(["model=pretrained_ocsvm"])
    model = settings.model
    assert (model.standardise, model.pca, model.unit) == (True, None, False)
    assert (model.nu, model.gamma, model.gamma_factor) == (0.1, "scale", 1.0)


def test_rows_without_pixels_and_more_support_vectors_than_a_block() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = (Rows(torch.randn(n, 3, generator=generator)) for n in (4300, 50))
    detector = learned(OCSVM((3,), nu=0.99, pca=None), train)
    assert len(detector.support) > 4096
    theirs = OneClassSVM(nu=0.99, gamma="scale").fit(flat(train))
    scores = detector.score(test.x)
    np.testing.assert_allclose(scores.numpy(), -theirs.decision_function(flat(test)), rtol=0, atol=1e-6)


def test_beats_chance_and_its_untrained_copy() -> None:
    train, test, anomalous = digits()
    x = test.take(torch.arange(len(test)))
    detector = OCSVM(train.shape)
    assert not detector.score(x).any()
    assert roc_auc_score(anomalous, learned(detector, train).score(x)) > 0.95


def test_scores_do_not_depend_on_the_batch() -> None:
    train, test, _ = digits()
    detector = learned(OCSVM(train.shape), train)
    x = test.take(torch.arange(len(test)))
    scores = detector.score(x)
    by_seven = torch.cat([detector.score(part) for part in x.split(7)])
    torch.testing.assert_close(by_seven, scores, rtol=0, atol=1e-9)
    torch.testing.assert_close(detector.score(x.flip(0)).flip(0), scores, rtol=0, atol=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(detector.score(x), scores, rtol=0, atol=1e-9)


@pytest.mark.parametrize("features", [None, partial(Autoencoder, code=6, width=2, batch_size=30)])
def test_kept_and_loaded_scores_the_same(features, tmp_path) -> None:
    train, test, _ = digits()
    detector = learned(OCSVM(train.shape, features=features), train)
    save_file(
        {name: x.contiguous() for name, x in detector.state_dict().items()}, tmp_path / "kept.safetensors"
    )
    other = OCSVM(train.shape, features=features).eval()
    other.load_state_dict(load_file(tmp_path / "kept.safetensors"))
    x = test.take(torch.arange(20))
    assert torch.equal(other.score(x), detector.score(x))


def test_features_learn_first_and_are_what_the_svm_sees() -> None:
    train, test, _ = digits()
    torch.manual_seed(0)
    detector = OCSVM(train.shape, pca=None, features=partial(Autoencoder, code=6, width=2, batch_size=30))
    assert isinstance(detector.features, Autoencoder)
    before = detector.features.encode[0].weight.clone()
    stage = next(iter(detector.stages(train)))
    assert stage.name == "autoencoder"
    learned(detector, train)
    assert not torch.equal(detector.features.encode[0].weight, before)

    with torch.no_grad():
        codes, tests = (
            detector.features.encode(rows.take(torch.arange(len(rows)))).double().numpy()
            for rows in (train, test)
        )
        scores = detector.score(test.take(torch.arange(len(test))))
    theirs = OneClassSVM(nu=0.1, gamma="scale").fit(codes)
    assert len(detector.support) < len(train)
    np.testing.assert_allclose(scores.numpy(), -theirs.decision_function(tests), rtol=0, atol=1e-4)


@pytest.mark.parametrize("features", [None, partial(Autoencoder, code=6, width=2, batch_size=30)])
def test_hindsight_tries_the_90_pairs_of_geotrans_and_leaves_the_detector_alone(
    features, monkeypatch
) -> None:
    train, test, anomalous = digits(32 if features else 8)
    torch.manual_seed(0)
    detector = learned(OCSVM(train.shape, features=features), train).eval()
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    with torch.no_grad():
        tried = list(detector.in_hindsight(train, test))
        x, tests = (
            detector.reduced(detector.embed(rows.take(torch.arange(len(rows))))).numpy()
            for rows in (train, test)
        )
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())
    pairs = [(values["gamma"], values["nu"]) for values, _ in tried]
    expected = [(2.0**power, tenth / 10) for power in range(-7, 3) for tenth in range(1, 10)]
    assert pairs == expected
    for values, scores in tried[::17]:
        theirs = -OneClassSVM(**values).fit(x).decision_function(tests)
        np.testing.assert_allclose(scores.numpy(), theirs, rtol=0, atol=2e-3)  # of libsvm, by default 1e-3
    assert max(roc_auc_score(anomalous, scores) for _, scores in tried) > 0.9


@pytest.mark.parametrize("pca", [0.95, None])
def test_refuses_training_rows_that_are_all_alike(pca) -> None:
    with pytest.raises(SettingError, match="all training rows are alike"):
        learned(OCSVM((3,), pca=pca), Rows(torch.ones(20, 3)))


def test_fits_at_most_max_rows() -> None:
    train, _, _ = digits(8)
    detector = learned(OCSVM(train.shape, nu=0.99, max_rows=17), train)
    assert len(detector.support) <= 17
    assert len(learned(OCSVM(train.shape, nu=0.99), train).support) > 100


class Featureless(Detector):
    """A detector that shows only scores."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def stages(self, train: Rows):
        return iter(())

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1)


def test_features_that_are_not_there() -> None:
    with pytest.raises(SettingError, match=r"model\.features=Featureless"):
        learned(OCSVM((1, 8, 8), features=Featureless), digits(8)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nu": 0.0}, "model.nu=0.0"),
        ({"nu": 1.0}, "model.nu=1.0"),
        ({"gamma": "auto"}, "model.gamma=auto"),
        ({"gamma": -1.0}, "model.gamma=-1.0"),
        ({"pca": 1.0}, "model.pca=1.0"),
        ({"max_rows": 1}, "model.max_rows=1"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        OCSVM((1, 8, 8), **settings)
