"""A worker of a sweep: the process that runs jobs, one after another, for `anomaly_bench.sweep`."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TextIO

from anomaly_bench.sweep import GRACE, SHARED


def main() -> None:
    """Answer requests from standard input on standard output, until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the sweep's own answers it
    signal.signal(signal.SIGTERM, leave)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a method prints is no answer
    waiting: SimpleQueue[list[Any]] = SimpleQueue()
    threading.Thread(target=listen, args=(requests, waiting), daemon=True).start()
    import anomaly_bench.run  # noqa: F401 - while the sweep is still reading its configs

    while True:
        what, of = waiting.get()
        answers.write(json.dumps(ANSWERS[what](of)) + "\n")
        answers.flush()


def listen(requests: TextIO, waiting: "SimpleQueue[list[Any]]") -> None:
    """Hand requests on. Where they end, the sweep is over or has died: leave, in the middle of a job too."""
    for line in requests:
        waiting.put(json.loads(line))
    shutil.rmtree(os.environ[SHARED], ignore_errors=True)  # a sweep that was killed has left it
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)  # compiled code did not come back in time; what was written is whole all the same


def leave(*_: object) -> None:
    """End as an exception, so that half-written files are removed; once, for the sweep's end says it again."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(0)


def device(wanted: str) -> str:
    """The kind of device of `trainer.device=wanted`."""
    from anomaly_bench.training.device import pick_device

    return pick_device(wanted).type


def training(config: dict[str, Any]) -> tuple[str | None, bool]:
    """What a job has in common with those that learn the same, and whether it takes over what one has learned."""
    from hydra.core.hydra_config import HydraConfig

    from anomaly_bench.compose import own, plain
    from anomaly_bench.twins import training_of

    try:
        settings = composed(config)
        HydraConfig.instance().set_config(settings)
        return training_of(plain(own(settings)))
    except Exception:  # the run says what is wrong
        return None, False


def load(config: dict[str, Any]) -> str | None:
    """Load the data set of a job for all workers; gives why that failed."""
    from hydra.core.utils import setup_globals
    from omegaconf import OmegaConf

    from anomaly_bench.compose import share_data
    from anomaly_bench.refusals import reason

    setup_globals()
    try:
        share_data(OmegaConf.create(config))
    except Exception as error:
        return reason(error, config["hydra"]["overrides"]["task"])
    return None


def composed(config: dict[str, Any]) -> Any:
    """The config of a job as Hydra composed it."""
    from hydra.conf import HydraConf
    from omegaconf import OmegaConf

    settings = OmegaConf.create(config)
    settings.hydra = OmegaConf.merge(OmegaConf.structured(HydraConf, flags={"struct": False}), settings.hydra)
    return settings


def run(config: dict[str, Any]) -> str | None:
    """Run one job as Hydra's own launchers do; gives what went wrong around it. The job itself leaves a note."""
    from hydra import version
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import run_job, setup_globals
    from hydra.types import HydraContext

    from anomaly_bench.cli import task
    from anomaly_bench.jobs import UNWRITTEN
    from anomaly_bench.refusals import reason

    version.setbase("1.3")
    setup_globals()
    try:
        settings = composed(config)
        done = run_job(
            task_function=lambda settings: task(settings, {}),
            config=settings,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=HydraContext(config_loader=None, callbacks=Callbacks(settings)),  # type: ignore
        )
        _ = done.return_value  # raises what was raised
    except Exception as error:
        return reason(error, config["hydra"]["overrides"]["task"])
    return UNWRITTEN.pop().get("error", "no note of its end could be written") if UNWRITTEN else None


def look(overrides: list[str]) -> dict[str, Any]:
    """What the data of a race are."""
    from anomaly_bench import recommend

    return told(overrides, lambda: recommend.look(overrides))


def race(entry: list[Any]) -> dict[str, Any]:
    """One run of a race: its `folder`, or the `error`."""
    from anomaly_bench import recommend

    overrides, made_up = entry
    return told(overrides, lambda: {"folder": str(recommend.run_one(overrides, made_up))})


def told(overrides: list[str], answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer, or why there is none."""
    from hydra import version

    from anomaly_bench.refusals import reason

    version.setbase("1.3")
    try:
        return answer()
    except Exception as error:
        return {"error": reason(error, overrides)}


ANSWERS = {"device": device, "training": training, "load": load, "run": run, "look": look, "race": race}
