import pytest

from anomaly_bench.errors import SettingError, check_choice, described, one_line


@pytest.mark.parametrize("allowed", [("l1", "l2"), {"l1": abs, "l2": pow}])
@pytest.mark.parametrize("value", ["L1", 1, None, ["l1"]])
def test_a_choice_that_is_not_there_is_refused_with_those_that_are(allowed, value):
    check_choice("norm", "l1", allowed)
    with pytest.raises(SettingError) as refusal:
        check_choice("norm", value, allowed)
    assert str(refusal.value) == f"model.norm={value}: allowed are l1, l2"


def test_errors_are_said_in_one_line():
    assert one_line(ValueError("a\n b")) == "a b"
    assert described(KeyError("x" * 400)) == f"KeyError: '{'x' * 299}"
