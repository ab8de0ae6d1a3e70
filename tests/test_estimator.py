"""Use from Python: scikit-learn's own checks, and the same scores as the command line's."""

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from anomaly_bench import AnomalyDetector, load_data, load_split
from anomaly_bench.errors import SettingError
from tests.finished import finished, people

FOREST = {"trees": 10, "max_samples": 64}
TINY = {"hidden": [4], "code": 2, "epochs": 2, "lr": 1e-2}


def expected_failures(estimator):
    """Checks of scikit-learn that do not hold, and why."""
    why = "settings of a method are arguments of any name, which the check cannot tell from attributes"
    return {"check_no_attributes_set_in_init": why}


@parametrize_with_checks(
    [AnomalyDetector("isolation_forest", **FOREST), AnomalyDetector("ae_dense", **TINY)],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_is_content(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    return load_split("digits", abnormal_class=3, image_size=16, limit=300)


def test_a_run_of_the_command_line_has_the_same_scores(tmp_path):
    x, new, anomalous = load_split("digits", abnormal_class=3, seed=1, image_size=16, limit=300)
    run = finished(
        tmp_path,
        seed="1",
        model="ae",
        data="digits",
        abnormal_class="3",
        data__image_size="16",
        data__limit="300",
        model__width="4",
        model__code="8",
        trainer__max_epochs="2",
    )
    theirs = pd.read_csv(run / "scores.csv")
    detector = AnomalyDetector("ae", max_epochs=2, seed=1, width=4, code=8).fit(x)
    assert (theirs["label"] == anomalous).all()
    np.testing.assert_allclose(detector.anomaly_score(new), theirs["score"], rtol=1e-4)
    losses = pd.read_csv(run / "losses.csv")
    np.testing.assert_allclose(detector.history_["reconstruction"], losses["reconstruction"], rtol=1e-4)
    metrics = pd.read_json(run / "metrics.json", typ="series")
    assert detector.threshold_ == pytest.approx(metrics["threshold"], rel=1e-4)


def test_rows_of_a_table_have_the_scores_of_a_run(tmp_path):
    data = {"root": str(people(tmp_path / "people.csv")), "label": "kind"}
    x, new, anomalous = load_split("table", normal_class="a", **data)
    assert np.isnan(x).any() or np.isnan(new).any()
    run = finished(
        tmp_path / "runs",
        model="isolation_forest",
        data="table",
        protocol="tabular_half",
        normal_class="a",
        **{f"data__{name}": value for name, value in data.items()},
    )
    theirs = pd.read_csv(run / "scores.csv")
    detector = AnomalyDetector().fit(x)
    np.testing.assert_allclose(detector.anomaly_score(new), theirs["score"], rtol=1e-5)
    assert roc_auc_score(anomalous, detector.anomaly_score(new)) > 0.75


def test_lower_is_more_abnormal_as_in_scikit_learn(digits):
    x, new, _ = digits
    detector = AnomalyDetector("isolation_forest", **FOREST, quantile=0.9).fit(x)
    scores = detector.anomaly_score(new)
    np.testing.assert_array_equal(detector.score_samples(new), -scores)
    np.testing.assert_allclose(detector.decision_function(new), detector.threshold_ - scores)
    np.testing.assert_array_equal(detector.predict(new) == -1, scores > detector.threshold_)
    assert (detector.predict(x) == -1).mean() == pytest.approx(0.1, abs=0.02)
    noise = np.random.RandomState(0).randint(0, 256, new.shape, np.uint8)
    assert detector.decision_function(noise).mean() < detector.decision_function(new).mean()


def test_a_row_that_scores_the_threshold_itself_is_normal(digits):
    detector = AnomalyDetector(**FOREST, quantile=1.0).fit(digits[0])
    assert detector.anomaly_score(digits[0]).max() == detector.threshold_
    assert (detector.predict(digits[0]) == 1).all()


def test_images_come_in_four_kinds(digits):
    x, new, _ = digits
    detector = AnomalyDetector("ae", width=4, code=8, epochs=1).fit(x)
    scores = detector.anomaly_score(new)
    for same in (new[:, 0], new / 255, torch.from_numpy(new)):
        np.testing.assert_allclose(detector.anomaly_score(same), scores, rtol=1e-4)
    assert detector.n_features_in_ == 16 * 16
    assert detector.shape_ == (1, 16, 16)


def test_a_method_with_a_threshold_of_its_own_keeps_it(digits):
    x = digits[0].reshape(len(digits[0]), -1)
    settings = {"hidden": [4], "rep": 2, "pretrain_epochs": 1, "epochs": 1, "warm_up": 0}
    own = AnomalyDetector("deep_svdd_soft", **settings).fit(x)
    assert own.threshold_ == own.detector_.own_threshold()
    assert own.threshold_rule_ == "the method's own"
    told = clone(own).set_params(quantile=0.5).fit(x)
    assert told.threshold_rule_ == "50 % of the training scores"
    assert (told.predict(x) == -1).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("method", ["knn", "ae_dense"])
def test_a_fitted_detector_pickles(method, digits):
    detector = AnomalyDetector(method, **(TINY if method == "ae_dense" else {})).fit(digits[0])
    again = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(again.anomaly_score(digits[1]), detector.anomaly_score(digits[1]))
    np.testing.assert_array_equal(again.predict(digits[1]), detector.predict(digits[1]))


def test_a_detector_behind_spectral_norm_pickles():
    x = np.random.RandomState(0).randint(0, 256, (8, 1, 16, 16), np.uint8)
    detector = AnomalyDetector("alad", width=2, nz=4, d_zz=[4], max_epochs=1, batch_size=8).fit(x)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = pickle.loads(pickle.dumps(detector))
    assert torch.rand(1) == expected
    np.testing.assert_allclose(again.anomaly_score(x), detector.anomaly_score(x), rtol=1e-5)


def test_a_seed_may_be_a_number_of_numpy(digits):
    one, other = (AnomalyDetector("ae_dense", seed=seed, **TINY).fit(digits[0]) for seed in (3, np.int64(3)))
    assert one.threshold_ == other.threshold_


def test_a_setting_that_is_refused_is_not_kept():
    detector = AnomalyDetector(**FOREST)
    with pytest.raises(SettingError, match="a__b: there is no such setting"):
        detector.set_params(a__b=1, trees=3)
    assert detector.settings == FOREST
    assert not hasattr(detector.set_params(trees=3), "trees")


def test_a_fit_that_failed_leaves_nothing_fitted(digits):
    x, new, _ = digits
    detector = AnomalyDetector("ae_dense", **TINY).fit(x)
    for broken in (detector.set_params(lr=1e30), AnomalyDetector("ae_dense", **TINY | {"lr": 1e30})):
        with pytest.raises(SettingError):
            broken.fit(x)
        with pytest.raises(NotFittedError):
            broken.predict(new)


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_large_offset_costs_no_precision(scale):
    draw = np.random.RandomState(0)
    x, offset = draw.normal(size=(400, 3)), np.array([1.7e9, 0, -1e8])
    new, anomalous = draw.normal(size=(200, 3)), np.arange(200) < 50
    new[anomalous, 0] += 12
    plain, moved = (
        AnomalyDetector("knn", scale=scale).fit(x + by).anomaly_score(new + by) for by in (0, offset)
    )
    assert roc_auc_score(anomalous, moved) == pytest.approx(roc_auc_score(anomalous, plain), abs=1e-3)
    np.testing.assert_allclose(moved, plain, rtol=1e-3)


def test_numbers_too_large_for_float32_are_refused():
    with pytest.raises(SettingError, match="too large for float32"):
        AnomalyDetector(**FOREST, scale=None).fit(np.array([[1.0], [1e39]]))


def test_settings_of_the_method_are_parameters():
    detector = AnomalyDetector("dagmm", epochs=5, k=4)
    assert detector.get_params()["k"] == 4
    assert clone(detector).set_params(k=3, seed=1).get_params() == detector.get_params() | {"k": 3, "seed": 1}
    assert detector.get_params()["k"] == 4
    assert "k=4" in repr(detector)
    several = [clone(detector).set_params(**point) for point in ParameterGrid({"k": [2, 3]})]
    assert [one.settings["k"] for one in several] == [2, 3]


def test_it_stands_at_the_end_of_a_pipeline(digits):
    x, new, _ = digits
    pipeline = make_pipeline(FunctionTransformer(lambda x: x.reshape(len(x), -1)), AnomalyDetector(**FOREST))
    assert set(pipeline.fit(x).predict(new)) <= {-1, 1}


def test_random_numbers_of_the_caller_are_left_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    AnomalyDetector("ae_dense", **TINY).fit(digits[0]).predict(digits[1])
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("arguments", "x", "said"),
    [
        ({"method": "daggm"}, (20, 4), "method=daggm: there is none; did you mean dagmm"),
        (
            {"trees": 3, "tree": 3},
            (20, 4),
            "tree: method=isolation_forest has no such setting; allowed are trees",
        ),
        ({"_target_": "os.system"}, (20, 4), "_target_: method=isolation_forest has no such setting"),
        ({"max_epochs": -1}, (20, 4), "max_epochs=-1"),
        ({"method": "ae_dense", "epochs": 1, "hidden": [0]}, (20, 4), r"model.hidden=\[0\]"),
        ({"scale": "log"}, (20, 4), "scale=log"),
        ({"quantile": 2}, (20, 4), "quantile=2"),
        ({"quantile": np.nan}, (20, 4), "quantile=nan"),
        ({"seed": 2**32}, (20, 4), "seed=4294967296"),
        ({"seed": -1}, (20, 4), "seed=-1"),
        ({"seed": "0"}, (20, 4), "seed=0"),
        ({"seed": None}, (20, 4), "seed=None"),
        ({"max_epochs": 1.5}, (20, 4), r"max_epochs=1\.5"),
        *(
            ({"method": "ae_dense", name: value}, (20, 4), f"model.{name}={value}: must be")
            for name, value in (
                ("epochs", -5),
                ("epochs", 1.5),
                ("epochs", True),
                ("epochs", "x"),
                ("lr", 0.0),
                ("batch_size", 0),
                ("batch_size", -3),
            )
        ),
        ({}, (20, 8, 8, 3), "puts the channels first"),
        ({}, (20, 2, 2, 2, 2), "dim 5"),
        ({"method": "dagmm"}, (20, 8, 8), "it takes rows of numbers"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_before_anything_is_trained(arguments, x, said, monkeypatch):
    monkeypatch.setattr("anomaly_bench.estimator.Trainer.learn", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=said) as refusal:
        AnomalyDetector(**arguments).fit(np.zeros(x, np.float32))
    assert "\n" not in str(refusal.value)


def test_a_list_of_images_is_taken_as_an_array_of_them(digits):
    detector = AnomalyDetector(**FOREST).fit(list(digits[0]))
    new = digits[1][:5]
    assert np.array_equal(detector.anomaly_score(list(new)), detector.anomaly_score(new))


def test_pixels_out_of_range_and_other_shapes_are_refused(digits):
    with pytest.raises(SettingError, match=r"pixels from 0 to 255; images are uint8, or float from 0 to 1"):
        AnomalyDetector(**FOREST).fit(digits[0].astype(float))
    with pytest.raises(SettingError, match=r"pixels from -0\.5 to 0\.5"):
        AnomalyDetector(**FOREST).fit(digits[0] / 255 - 0.5)
    detector = AnomalyDetector(**FOREST).fit(digits[0])
    for other in (digits[1][:, :, :8], digits[1].reshape(len(digits[1]), -1)):
        with pytest.raises(SettingError, match=r"the detector was fitted to \(1, 16, 16\)"):
            detector.predict(other)


def test_data_sets_are_arrays_of_the_callers_own():
    x, y = load_data("digits", limit=50, image_size=8)
    assert (x.shape, x.dtype, y.shape) == ((50, 1, 8, 8), np.uint8, (50,))
    assert set(y) == set("0123456789")
    x[:] = 0
    assert load_data("digits", limit=50, image_size=8)[0].any()
    with pytest.raises(SettingError, match="data=digit: there is none; did you mean digits"):
        load_data("digit")
    with pytest.raises(SettingError, match="size: data=digits has no such setting"):
        load_data("digits", size=8)
    with pytest.raises(SettingError, match="protocol=onevsrest: there is none"):
        load_split("digits", protocol="onevsrest")


def test_a_class_that_is_kept_is_the_normal_one():
    _, test, anomalous = load_split("digits", protocol="contaminated", normal_class=3, image_size=8)
    x, y = load_data("digits", image_size=8)
    assert len(test) > (y == "3").sum()
    np.testing.assert_array_equal(test[~anomalous], x[y == "3"])


def test_files_that_changed_are_read_again(tmp_path):
    path = people(tmp_path / "people.csv")
    before, _ = load_data("table", root=path, label="kind")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    after, _ = load_data("table", root=path, label="kind")
    assert len(after) == len(before) - 3
    assert sum(map(len, load_split("table", normal_class="a", root=str(path), label="kind")[:2])) <= len(
        after
    )


@pytest.mark.parametrize("wanted", [3.0, True, None])
def test_a_class_is_a_number_or_a_name(wanted):
    with pytest.raises(SettingError, match=f"abnormal_class={wanted}: a whole number or a name is needed"):
        load_split("digits", abnormal_class=wanted)


def test_what_data_cannot_be_is_said_in_a_line():
    with pytest.raises(SettingError, match="seed=0: allowed is 0 to"):
        load_split("digits", seed="0")
    with pytest.raises(SettingError, match="/nonexistent") as refusal:
        load_data("folder", root="/nonexistent")
    assert "\n" not in str(refusal.value)
    with pytest.raises(SettingError, match=r"data\.limit=x: must be"):
        load_data("digits", limit="x")


@pytest.mark.parametrize("kind", [np.int64, np.str_])
def test_a_class_may_be_a_number_or_a_name_of_numpy(kind):
    expected = load_split("digits", limit=50, abnormal_class=3)
    found = load_split("digits", limit=50, abnormal_class=kind(3), normal_class=kind(1))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_importing_the_package_stays_light():
    code = (
        "import anomaly_bench, sys; assert 'load_data' in dir(anomaly_bench); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        __import__("anomaly_bench").nothing  # noqa: B018
