"""What a user did that cannot work, said in one line."""

import operator
from collections.abc import Collection


class SettingError(ValueError):
    """A setting, a file or a device that cannot be used.

    The message names the setting, what was found, and what is allowed. The command line prints it as one
    line and exits with code 2.
    """


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Refuse a value of a method's setting that is none of these."""
    if value not in list(allowed):  # of a dictionary too, where the value is a list
        raise SettingError(f"model.{name}={value}: allowed are {', '.join(allowed)}")


def check_range(
    name: str,
    value: float,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    room: str = "model",
) -> None:
    """Refuse a number that is not within these bounds, as NaN never is."""
    bounds = (
        ("above", operator.gt, above),
        ("at least", operator.ge, at_least),
        ("at most", operator.le, at_most),
        ("below", operator.lt, below),
    )
    given = [(words, holds, bound) for words, holds, bound in bounds if bound is not None]
    if not all(holds(value, bound) for _, holds, bound in given):
        allowed = " and ".join(f"{words} {bound}" for words, _, bound in given)
        raise SettingError(f"{room}.{name}={value}: must be {allowed}")


def one_line(said: BaseException | str) -> str:
    """A message without its line breaks."""
    return " ".join(str(said).split())


def described(error: BaseException) -> str:
    """Kind and message of an error that is not ours, in one line."""
    return f"{type(error).__name__}: {one_line(error)[:300]}"


def printable(text: str) -> str:
    """Line ends, control codes and halves of letters as spaces."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
