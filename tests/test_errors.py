import math

import pytest

from anomaly_bench.errors import SettingError, check_choice, check_range, described, one_line


@pytest.mark.parametrize("allowed", [("l1", "l2"), {"l1": abs, "l2": pow}])
@pytest.mark.parametrize("value", ["L1", 1, None, ["l1"]])
def test_a_choice_that_is_not_there_is_refused_with_those_that_are(allowed, value):
    check_choice("norm", "l1", allowed)
    with pytest.raises(SettingError) as refusal:
        check_choice("norm", value, allowed)
    assert str(refusal.value) == f"model.norm={value}: allowed are l1, l2"


@pytest.mark.parametrize(
    ("bounds", "allowed", "refused", "said"),
    [
        ({"at_least": 1}, [1, 2], [0, math.nan], "at least 1"),
        ({"above": 0}, [1e-320, math.inf], [0, -0.0, -1, math.nan], "above 0"),
        ({"above": 0, "below": 1}, [0.5], [0, 1, 1.5, math.nan], "above 0 and below 1"),
        ({"at_least": 0, "below": 1}, [0, 0.5], [-0.5, 1, math.nan], "at least 0 and below 1"),
        ({"above": 0, "at_most": 1}, [0.5, 1], [0, 1.5, math.nan], "above 0 and at most 1"),
        ({"at_least": 0, "at_most": 1}, [0, 1], [-1, 2, math.nan], "at least 0 and at most 1"),
    ],
)
def test_a_number_outside_of_its_bounds_is_refused_with_them(bounds, allowed, refused, said):
    for value in allowed:
        check_range("nu", value, **bounds)
    for value in refused:
        with pytest.raises(SettingError) as refusal:
            check_range("nu", value, **bounds)
        assert str(refusal.value) == f"model.nu={value}: must be {said}"


def test_a_number_is_refused_in_the_name_of_its_room():
    with pytest.raises(SettingError, match=r"^protocol\.rho=2: must be below 1$"):
        check_range("rho", 2, below=1, room="protocol")


def test_errors_are_said_in_one_line():
    assert one_line(ValueError("a\n b")) == "a b"
    assert described(KeyError("x" * 400)) == f"KeyError: '{'x' * 299}"
