"""The checks themselves: healthy detectors pass all of them, and broken ones fail in those meant for them alone."""

import broken
import pytest
from conformance import CHECKS, Case, runs_or_refuses

from anomaly_bench.detector import Detector

HEALTHY = [broken.Rebuilding, broken.Following, broken.Centred]
CAUGHT_BY = {
    broken.NeverInEvaluationMode: {"scores_each_row_alone"},
    broken.Drawing: {"scores_each_row_alone", "loads_in_a_new_process"},
    broken.Collapsed: {"tells_rows_apart", "beats_its_untrained_self"},
    broken.Coarse: {"tells_rows_apart"},
    broken.Flipped: {"beats_its_untrained_self"},
    broken.Contradicting: {"explains_what_it_scores"},
    broken.ReadingBetween: {"folds_to_the_same_scores"},
    broken.Overwriting: {"scoring_leaves_no_trace"},
    broken.InFloat64: {"says_where_it_needs_float64"},
    broken.LeavingGradients: {"scoring_leaves_no_trace"},
    broken.CutOff: {"moves_every_parameter"},
    broken.Counting: {"scoring_leaves_no_trace", "scoring_leaves_training_alone"},
    broken.OwnRandomState: {
        "resumes_to_the_same_bits",
        "replays_to_the_same_bits",
        "scoring_leaves_training_alone",
    },
    broken.CountingInAList: {"replays_to_the_same_bits", "resumes_to_the_same_bits"},
    broken.LocalAcrossAYield: {"resumes_to_the_same_bits"},
    broken.AsManyStagesAsItTakes: {"resumes_to_the_same_bits"},
    broken.KeptOutside: {"loads_in_a_new_process"},
    broken.KeptNowhere: {"loads_in_a_new_process"},
    broken.Crashing: {"runs_or_refuses"},
}


def failures(kind: type[Detector]) -> dict[str, str]:
    """What each check that fails says."""
    case, said = Case(kind), {}
    for check in CHECKS:
        try:
            check(case)
        except AssertionError as error:
            said[check.__name__] = str(error)
    return said


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_detector_passes(kind: type[Detector]) -> None:
    assert failures(kind) == {}


@pytest.mark.parametrize("kind", CAUGHT_BY)
def test_a_broken_detector_is_caught(kind: type[Detector]) -> None:
    said = failures(kind)
    assert said.keys() == CAUGHT_BY[kind], said
    assert all(said.values())


def test_an_endless_loop_is_caught() -> None:
    with pytest.raises(AssertionError, match="no end after 1 s"):
        runs_or_refuses(Case(broken.Endless), seconds=1)
