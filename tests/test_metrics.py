import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly_bench import metrics
from anomaly_bench.errors import SettingError

SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
TRUTH = [0, 0, 1, 0, 1, 1]


def test_auroc_counts_the_pairs_in_right_order():
    # 9 pairs of a normal and an anomalous row; only 0.3 below 0.4 is the wrong way round
    assert metrics.auroc(SCORES, TRUTH) == pytest.approx(8 / 9)
    assert metrics.auroc(np.negative(SCORES), TRUTH) == pytest.approx(1 / 9)


@pytest.mark.parametrize(
    ("scores", "area", "rate"), [([0, 1, 2, 3], 1, 0), ([3, 2, 1, 0], 0, 1), ([1, 1, 1, 1], 0.5, 0.5)]
)
def test_perfect_inverted_and_tied(scores, area, rate):
    numbers = metrics.measure(scores, [0, 0, 1, 1], threshold=1.5)
    assert numbers["auroc"] == pytest.approx(area)
    assert numbers["eer"] == pytest.approx(rate)


@pytest.mark.parametrize(("normal", "anomalous"), [(25, 5), (9, 2), (2, 9)])
def test_no_area_is_above_1(normal, anomalous):
    """Sums of steps come out above by rounding, and readers of records refuse such an area."""
    numbers = metrics.measure(
        np.arange(normal + anomalous), np.arange(normal + anomalous) >= normal, normal - 0.5
    )
    assert [numbers[name] for name in ("auroc", "aupr_in", "aupr_out", "average_precision", "f1")] == [1] * 5


def test_half_a_point_for_a_tie():
    assert metrics.auroc([1, 2, 2, 3], [0, 0, 1, 1]) == pytest.approx(3.5 / 4)


def test_equal_error_rate_between_two_points():
    # the ROC goes (0, 2/3), (1/3, 2/3), (1/3, 1): it crosses the diagonal of equal errors at a third
    assert metrics.measure(SCORES, TRUTH, 0)["eer"] == pytest.approx(1 / 3)
    # one tied score each: the ROC goes from (0, 1/2) straight to (1/2, 1) and meets it at (1/4, 3/4)
    assert metrics.measure([1, 2, 2, 3], [0, 0, 1, 1], 0)["eer"] == pytest.approx(1 / 4)


def test_areas_under_precision_and_recall_by_hand():
    # anomalies from the top: precision 1 up to recall 2/3, then 2/3 and, at recall 1, 3/4
    numbers = metrics.measure(SCORES, TRUTH, 0)
    assert numbers["average_precision"] == pytest.approx(2 / 3 + 1 / 3 * 3 / 4)
    assert numbers["aupr_out"] == pytest.approx(2 / 3 + 1 / 3 * (2 / 3 + 3 / 4) / 2)
    # 1 of 4 anomalous: the two kinds have areas of their own
    numbers = metrics.measure([1, 2, 3, 4], [0, 1, 0, 0], 0)
    assert numbers["aupr_out"] == pytest.approx((0 + 1 / 3) / 2 * 0 + 1 * (0 + 1 / 3) / 2)
    assert numbers["aupr_in"] == pytest.approx(1 / 3 + (1 / 2 + 2 / 3) / 2 / 3 + (2 / 3 + 3 / 4) / 2 / 3)


def test_anomalous_means_above_the_threshold():
    numbers = metrics.measure(SCORES, TRUTH, threshold=0.3)  # 0.3 itself is called normal
    assert numbers["precision"] == pytest.approx(2 / 3)
    assert numbers["recall"] == pytest.approx(2 / 3)
    assert numbers["specificity"] == pytest.approx(2 / 3)
    assert numbers["f1"] == pytest.approx(2 / 3)
    numbers = metrics.measure(SCORES, TRUTH, threshold=0.15)
    assert [numbers[name] for name in ("precision", "recall", "specificity", "f1")] == pytest.approx(
        [3 / 5, 1, 1 / 3, 3 / 4]
    )


def test_nothing_called_anomalous_is_precision_zero():
    numbers = metrics.measure(SCORES, TRUTH, threshold=9)
    assert (numbers["precision"], numbers["recall"], numbers["specificity"], numbers["f1"]) == (0, 0, 1, 0)


def test_measure_gives_plain_floats_by_the_agreed_names():
    numbers = metrics.measure(np.float32(SCORES), np.array(TRUTH, bool), np.float32(0.3))
    assert list(numbers) == [
        *("auroc", "aupr_in", "aupr_out", "average_precision", "eer"),
        *("threshold", "precision", "recall", "specificity", "f1"),
    ]
    assert {type(number) for number in numbers.values()} == {float}


def test_each_class_is_measured_against_all_normal_rows():
    scores, classes = [0, 2, 1, 3, 4, 5], [0, 1, 2, 2, 3, 3]
    areas = metrics.per_class(scores, [0, 0, 1, 1, 1, 1], classes, ["cat", "dog", "gun", "knife"])
    assert areas == {"gun": pytest.approx(3 / 4), "knife": 1}


def test_best_f1_threshold_beats_every_other():
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    scores = np.round(rng.normal(size=60) + truth, 1).astype(np.float32)
    best = metrics.measure(scores, truth, metrics.best_f1_threshold(scores, truth))["f1"]
    assert best == max(metrics.measure(scores, truth, t)["f1"] for t in [*scores, -99])


def test_best_f1_threshold_by_hand():
    assert metrics.best_f1_threshold(SCORES, TRUTH) == 0.2  # 3 of 4 above it are anomalous: 6/7
    assert metrics.best_f1_threshold([1, 2, 3], [1, 0, 1]) < 1  # all called anomalous: 4/5


@pytest.mark.parametrize(
    ("scores", "share", "called"),
    [
        (np.arange(100), 0.2, 20),
        (np.arange(7), 0.5, 3),
        ([0] * 80 + [1] * 20, 0.2, 20),
        ([0] * 380 + [5] * 100 + [10] * 20, 0.2, 120),  # of 100 wanted; 20 are further away
        ([0] * 380 + [5] * 100 + [10] * 20, 0.1, 20),  # of 50
        ([0] * 90 + [5] * 10, 0.05, 0),  # as near as 10, and no more than the share
        ([3] * 10, 0.2, 0),
        ([3] * 10, 0.7, 10),
        (np.arange(10), 1, 10),
        (np.arange(10), 0, 0),
        ([2], 1, 1),
    ],
)
def test_a_share_of_rows_is_called_and_equal_scores_alike(scores, share, called):
    scores = np.random.RandomState(0).permutation(np.asarray(scores, np.float32))
    assert (scores.astype(np.float64) > metrics.share_threshold(scores, share)).sum() == called


def test_quantile_threshold():
    assert metrics.quantile_threshold(np.arange(101), 0.95) == pytest.approx(95)
    assert [metrics.quantile_threshold([3, 1, 2], end) for end in (0, 1)] == [1, 3]
    with pytest.raises(SettingError, match=r"1\.5.*between 0 and 1"):
        metrics.quantile_threshold([1, 2], 1.5)
    with pytest.raises(SettingError, match="1 of 2 scores are not finite"):
        metrics.quantile_threshold([1, np.nan], 0.5)


@pytest.mark.parametrize(
    ("scores", "truth", "message"),
    [
        ([1, 2], [0, 0], "all 2 test rows are normal"),
        ([1, 2], [1, 1], "all 2 test rows are anomalous"),
        ([1, np.inf, np.nan], [0, 1, 1], "2 of 3 scores are not finite"),
    ],
)
def test_degenerate_rows_are_refused_in_a_sentence(scores, truth, message):
    for refuse in (metrics.auroc, metrics.best_f1_threshold, lambda s, t: metrics.measure(s, t, 0)):
        with pytest.raises(SettingError, match=message):
            refuse(scores, truth)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not go with"):
        metrics.auroc([1, 2, 3], [0, 1])
    with pytest.raises(ValueError, match="one number a row"):
        metrics.auroc([[1, 2]], [[0, 1]])
    with pytest.raises(ValueError, match="one number a row"):
        metrics.auroc([], [])


def test_the_interval_is_that_of_resampled_rows_measured_one_by_one():
    random = np.random.default_rng(3)
    truth = np.arange(60) % 3 == 0
    scores = np.round(random.normal(truth, 1), 1)  # one digit, so that there are ties
    normal, abnormal = np.sort(scores[~truth]), np.sort(scores[truth])
    draws, areas = np.random.default_rng(7), []
    for _ in range(100):
        drawn = normal[draws.integers(40, size=40, dtype=np.uint32)]
        found = abnormal[draws.integers(20, size=20, dtype=np.uint32)]
        areas.append(roc_auc_score(np.arange(60) >= 40, np.concatenate([drawn, found])))
    expected = np.quantile(areas, [0.025, 0.975])
    assert len(np.unique(scores)) < 60
    assert metrics.auroc_interval(scores, truth, resamples=100, seed=7) == pytest.approx(expected, abs=1e-12)


def test_the_interval_is_as_wide_as_theory_has_it():
    # the variance of DeLong, DeLong and Clarke-Pearson, Biometrics 44, 1988
    truth = np.arange(2000) % 4 == 0
    scores = np.random.default_rng(0).normal(truth, 1)
    beaten = scores[truth][:, None] > scores[~truth]
    variance = beaten.mean(1).var(ddof=1) / 500 + beaten.mean(0).var(ddof=1) / 1500
    low, high = metrics.auroc_interval(scores, truth)
    assert low < metrics.auroc(scores, truth) < high
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.05)


def test_the_interval_of_perfect_scores_has_no_width_and_is_the_same_again():
    assert metrics.auroc_interval([0, 1, 2, 3], [0, 0, 1, 1]) == (1, 1)
    assert metrics.auroc_interval(SCORES, TRUTH) == metrics.auroc_interval(SCORES, TRUTH)


def test_areas_of_pixels_by_hand():
    masks = np.zeros((2, 2, 5), bool)
    masks[0, 0, :2] = True  # a region of two pixels
    masks[0, 1, 4] = True  # and one of one
    maps = np.zeros((2, 2, 5))
    maps[0, 0, 0], maps[0, 1, 4], maps[1, 0, 0], maps[0, 0, 1] = 4, 3, 2, 1
    areas = metrics.pixel_areas(maps, masks)
    assert areas["auroc_pixel"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()))
    first, limit = 1 / 17, 0.3  # the share of unmarked pixels that the third highest makes
    after = np.interp([limit], [first, 1], [1, 1])[0]  # with the fourth highest all is found
    expected = (0.75 * first + after * (limit - first)) / limit
    assert areas["aupro"] == pytest.approx(expected)


def test_maps_that_are_the_masks_have_areas_of_one():
    masks = np.random.RandomState(1).rand(3, 20, 20) > 0.7  # whose shares add up to a little more than one
    areas = metrics.pixel_areas(masks.astype(float), masks)
    assert areas == {"auroc_pixel": 1.0, "aupro": pytest.approx(1)}
    assert areas["aupro"] <= 1


def test_the_overlap_with_regions_is_that_of_every_threshold():
    rng = np.random.default_rng(0)
    masks = np.zeros((3, 12, 12), bool)
    masks[0, 2:5, 3:6] = masks[0, 9, 9] = masks[0, 10, 10] = masks[1, 5:, 1:3] = True
    maps = np.round(rng.normal(size=masks.shape) + masks, 1)  # rounded, so that scores are equal
    regions = [np.zeros_like(masks) for _ in range(3)]
    regions[0][0, 2:5, 3:6] = regions[1][0, 9, 9] = regions[1][0, 10, 10] = regions[2][1, 5:, 1:3] = True
    thresholds = np.unique(maps)[::-1]
    false = [0, *(np.mean(maps[~masks] >= threshold) for threshold in thresholds)]
    found = [0, *(np.mean([(maps[r] >= threshold).mean() for r in regions]) for threshold in thresholds)]
    grid = np.linspace(0, 0.3, 300_001)
    expected = np.trapezoid(np.interp(grid, false, found), grid) / 0.3
    assert metrics.pixel_areas(maps, masks)["aupro"] == pytest.approx(expected, abs=1e-4)


def test_what_is_found_only_past_the_limit_does_not_count():
    marked = np.array([True, *[False] * 10])
    scores = np.array([3, *[4] * 3, *[0] * 7])  # the mark comes right after 3 of 10 unmarked pixels
    assert metrics.pixel_areas(scores[None, None], marked[None, None])["aupro"] == 0


@pytest.mark.parametrize(("sign", "area"), [(1, 1.0), (-1, 0.0)])
def test_perfect_maps_and_inverted_ones(sign, area):
    masks = np.eye(4, dtype=bool)[None]
    assert set(metrics.pixel_areas(sign * masks.astype(float), masks).values()) == {area}
