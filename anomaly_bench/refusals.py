"""What is said of settings that cannot be taken, and of errors: one line that names what was typed."""

import difflib
import os
import re
import sys
import traceback
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from anomaly_bench.errors import SettingError, described, one_line, printable
from anomaly_bench.places import CONFIGS, names_in

DEBUG = "ANOMALY_BENCH_DEBUG"
EXTRAS = ("joblib", "slurm", "optuna")
NEEDED = ("model", "data", "protocol", "evaluation")
"""Groups of which a run needs a file."""

KINDS = {
    "to Integer": "a whole number",
    "to Float": "a number",
    "valid bool": "true or false",
    "Union[int, str]": "a whole number or a name (in quotes within quotes where it reads as another value)",
    "not Optional": "a value other than null",
    "to string": "a text",
}
"""What OmegaConf says of a value of the wrong type, and what is allowed in its place."""

QUOTED = """'data.root="a b"'"""

PROBLEM = ("seed", "abnormal_class", "normal_class", "data", "protocol", "evaluation", "experiment", "point")
"""Settings that say what the problem is; no search chooses them."""


def refuse(line: str) -> int:
    """One line on standard error, and exit code 2."""
    if os.environ.get(DEBUG) == "1" and sys.exc_info()[0]:
        traceback.print_exc()
    print(f"anomaly-bench: {printable(line)}", file=sys.stderr)
    return 2


def frequent_slips(arguments: Sequence[str]) -> None:
    """Refuse `--model x` and `runs_dir=`."""
    known = {*os.listdir(CONFIGS), "seed", "abnormal_class", "normal_class", "runs_dir", "rerun"}  # noqa: PTH208
    for argument in arguments:
        word = argument.lstrip("-").split("=")[0]
        if argument.startswith("--") and word.split(".")[0] in known:
            raise SettingError(f"{argument}: settings have no dashes; write {word}=VALUE")
        if argument == "runs_dir=":  # of a shell's variable that is not set; a sweep would write to /
            raise SettingError("runs_dir=: a folder is needed, such as runs_dir=. for this one")


def flags_among(arguments: Sequence[str]) -> Namespace:
    """Hydra's flags; refuses those that it would answer with its usage, and the one that would unpickle a file."""
    from hydra._internal.utils import get_args_parser

    def error(message: str) -> NoReturn:
        if apart := re.fullmatch(r"unrecognized arguments: ([^-\s]\S*=.*)", one_line(message)):
            raise SettingError(
                f"{apart[1]}: settings stand together, all before the flags or all behind them"
            )
        raise SettingError(f"{one_line(message)}; --hydra-help shows the flags there are")

    parser = get_args_parser()
    parser.error = error
    flags = parser.parse_args(list(arguments))
    if flags.experimental_rerun is not None:
        raise SettingError("--experimental-rerun: it unpickles a file; type the command again instead")
    return flags


def words_are_commands(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse `reprot runs`, which is no command, and no setting either."""
    word = arguments[0] if arguments else "-"
    if "=" not in word and not word.startswith(("-", "~")):
        raise SettingError(
            f"{word}: there is no such command; there are {', '.join(sorted(commands))}; settings are written KEY=VALUE"
        )


def commands_come_first(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse `--config-dir mine score RUN`, where Hydra would see settings."""
    for before, word in pairwise(arguments):
        if word in commands and not before.startswith("-"):
            raise SettingError(f"{word}: a command comes first, before its options: anomaly-bench {word} ...")


def groups_take_names(arguments: Sequence[str]) -> None:
    """Refuse `model=1.5` and the like, since a group takes the name of a file, and `~model`: a run needs one."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for argument in arguments:
        group = argument.partition("=")[0].removeprefix("~")
        if group == "experiment" or not (CONFIGS / group).is_dir() or argument == group:
            continue
        names = ", ".join(names_in(group))
        if argument.startswith("~"):
            if group in NEEDED:
                raise SettingError(f"{argument}: a run needs one; there are {names}")
            continue
        try:
            value = OverridesParser.create().parse_override(argument).value()
        except HydraException:
            continue  # which Hydra tells of
        if value is None or isinstance(value, bool | int | float | list | dict):
            raise SettingError(f"{argument}: a name is needed; there are {names}")


def ranges_stand_alone(arguments: Sequence[str]) -> None:
    """Refuse `abnormal_class=0,range(3,5)`, which Hydra cannot sweep over, and a range without values."""
    for argument in arguments:
        value = argument.partition("=")[2]
        if value == "range(0)" or re.fullmatch(r"range\((-?\d+),\1\)", value):
            raise SettingError(f"{argument}: it has no values")
        if re.match(r"range\([^()]*\)\s*,|[^\[{('\"]*,\s*range\(", value):
            raise SettingError(f"{argument}: range(...) stands alone or not at all; write the values out")


def for_each_job(arguments: Sequence[str]) -> list[str]:
    """`++model.lr=1` for `model.lr=1` where models are swept that have it: Hydra asks the default model for it first.

    A job whose model has it not is refused alone.
    """
    pairs = [argument.partition("=") for argument in arguments]
    values = {key: re.sub(r"^choice\((.*)\)$", r"\1", value).split(",") for key, _, value in pairs}
    swept = {key: names for key, names in values.items() if len(names) > 1 and (CONFIGS / key).is_dir()}
    own = flags_among(arguments).config_dir

    def is_known(key: str) -> bool:
        group = key.partition(".")[0]
        return any(key in known_keys([f"{group}={name}"], own) for name in swept[group])

    return [
        f"++{argument}" if key.partition(".")[0] in swept and "." in key and is_known(key) else argument
        for argument, (key, _, _) in zip(arguments, pairs, strict=True)
    ]


def as_typed(overrides: Iterable[str]) -> list[str]:
    """Overrides without what `for_each_job` has put before them."""
    return [text.removeprefix("++") for text in overrides]


def refusal_in(error: BaseException | None) -> SettingError | None:
    """The SettingError that an error was made from, if it was."""
    while error is not None:
        if isinstance(error, SettingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def explained(error: Exception, arguments: Sequence[str]) -> str | None:
    """One line for what Hydra and OmegaConf refuse; None for any other error."""
    from hydra.errors import (
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    if (refusal := refusal_in(error)) is not None:
        return str(refusal)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wanted = str(error.missing_cfg_file).rpartition("/")
        return none_such(group, wanted, sorted(error.options))
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override):
            return f"{error.override}: no KEY=VALUE; a value with spaces needs quotes within quotes, as in {QUOTED}"
        return (
            f"{error.override}: cannot be read; a value with other signs than a to z, digits and _ . / - needs "
            f"quotes within quotes, as in {QUOTED}"
        )
    if ambiguous := re.match(r"Ambiguous value for argument '(.+?)'\n", str(error)):
        return f"{ambiguous[1]}: several values are a sweep, which needs -m; one list is written [A,B]"
    if swept := re.match(r"Sweep parameters '(.+)' requires --multirun", str(error)):
        return f"{swept[1]}: several values are a sweep, which needs -m"
    if gone := re.match(r"Key '(.+?)' not in 'Settings'", str(error)):
        return f"~{gone[1]}: it cannot be left out; {gone[1]}=VALUE sets it"
    if isinstance(error, InstantiationException):
        return one_line(error)
    if missing := re.search(
        r"Unknown plugin class : 'hydra_plugins\.hydra_(\w+)_(launcher|sweeper)\.", str(error)
    ):
        extra = {"submitit": "slurm"}.get(missing[1], missing[1])
        plugin = f"hydra-{missing[1]}-{missing[2]}".replace("_", "-")
        what = f"anomaly-bench[{extra}]" if extra in EXTRAS else plugin
        return f"hydra/{missing[2]}: {plugin} is not installed: pip install {what}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if unknown := re.search(r"Could not override '(.+?)'", str(error)):
        return f"{unknown[1]}: no such setting{did_you_mean(unknown[1], arguments)}"
    line, reason = one_line(error), str(error.__cause__ or "").partition("\n")[0]
    if override := re.fullmatch(r"Error merging override (.+)", line):
        if "does not support deletion" in reason:
            return f"{override[1]}: it cannot be left out; {override[1].removeprefix('~')}=VALUE sets it"
        needed = next((kind for sign, kind in KINDS.items() if sign in reason), None)
        return f"{override[1]}: {needed} is needed" if needed else f"{override[1]}: {reason}"
    return f"{line}: {reason}" if reason else line


def none_such(what: str, wanted: object, names: Sequence[str]) -> str:
    """The line that refuses a name, with those that come closest, else all that there are."""
    close = difflib.get_close_matches(str(wanted), names)
    hint = f"did you mean {' or '.join(close)}?" if close else f"allowed are {', '.join(names)}"
    return f"{what}={wanted}: there is none; {hint}"


def check_name(what: str, wanted: object, group: str) -> None:
    """Refuse a name that no config of a group has."""
    if wanted not in (names := names_in(group)):
        raise SettingError(none_such(what, wanted, names))


def reason(error: Exception, overrides: Sequence[str]) -> str:
    """Why a job of a sweep failed, in a line."""
    return explained(error, overrides) or described(error)


def did_you_mean(wanted: str, arguments: Sequence[str]) -> str:
    """The keys there are that come closest, else those of the group."""
    typed = [key for key in known_keys(arguments, flags_among(arguments).config_dir) if "._" not in key]
    known = [key for key in typed if key != wanted]  # one job of a sweep may have it
    group, _, name = wanted.partition(".")
    there = [key.removeprefix(f"{group}.") for key in known if name and key.startswith(f"{group}.")]
    if there:
        elsewhere = [key for key in known if key.rpartition(".")[2] == name]  # `deterministic`, of no group
        close = elsewhere or [f"{group}.{key}" for key in difflib.get_close_matches(name, there)]
    elif name:
        close = difflib.get_close_matches(wanted, known)
    else:  # `lr` too, of model.lr
        whole = {key.rpartition(".")[2]: key for key in sorted(known, key=lambda key: -key.count("."))}
        close = [whole[key] for key in difflib.get_close_matches(wanted, whole)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(there)}" if there else "; --cfg job shows all there are"


def known_keys(arguments: Sequence[str], own: str | None = None) -> list[str]:
    """Every key of the config that the groups among the arguments compose, with the configs of one's `own` folder."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    pairs = [argument.partition("=") for argument in arguments if "=" in argument]
    places = [CONFIGS, *([Path(own).resolve()] if own else [])]
    choices = [
        f"{group}={name}"
        for group, _, name in pairs
        if any((place / group / f"{name}.yaml").is_file() for place in places)
    ]
    more = [f"hydra.searchpath=[{quoted(f'file://{places[1]}')}]"] if own else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = compose("config", [*more, *choices])
    return list(paths_in(OmegaConf.to_container(settings)))


def quoted(text: str) -> str:
    """A text as an override's value."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def paths_in(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of nested values."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths_in(value, f"{prefix}{key}.")


def of_problem_and_swept(overrides: Sequence[str]) -> list[str]:
    """Of what a sweep goes over, that which says what the problem is, not how it is solved."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    swept = [one for one in parsed if one.is_sweep_override()]
    return [str(one.input_line) for one in swept if one.key_or_group.partition(".")[0] in PROBLEM]
