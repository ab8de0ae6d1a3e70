"""Trackers: TensorBoard, MLflow or Weights & Biases are told what a run's folder records, where one is asked for.

The folder is the truth. A tracker sees what is written there and nothing else, and whatever becomes of it, the run
goes on. What it was told is noted in `tracked.json`, so that a run that goes on goes on there too, and a finished
run can be told of later.
"""

import json
import logging
import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock

from anomaly_bench import record
from anomaly_bench.errors import described
from anomaly_bench.history import read_losses
from anomaly_bench.training.checkpoint import Epoch

log = logging.getLogger("anomaly_bench")

NOTE = "tracked.json"
"""The file of a run that says what trackers were told."""

EXTRAS = ("tensorboard", "mlflow", "wandb")
"""Packages that an extra of the same name brings."""

IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""So that a server which does not answer holds a run up for seconds; MLflow itself tries for minutes."""

FOREIGN = re.compile(r" *[^\w\-. /]+ *")
"""What no name may hold at a tracker."""

LONGEST = 240
"""Characters of a name; MLflow takes 250, with what stands before it."""


class Tracker(Protocol):
    """What a tracker has to do; it is made with a run's `name`, its `settings`, and the `id` it had, if it goes on.

    Attributes:
        id: by which the run is found again there.
    """

    id: str

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Note the numbers of an epoch, the first of a run is 1."""
        ...

    def finish(self, step: int, numbers: Mapping[str, float], error: str | None) -> None:
        """Note what the run came to, after so many epochs, or why it failed, and let go of everything."""
        ...


class TensorBoard:
    """Event files in a folder of the run's name: `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: str, *, name: str, settings: Mapping[str, Any], id: str | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = name
        self.writer = SummaryWriter(str(Path(folder) / name), purge_step=0 if id is None else None)
        if id is None:
            self.writer.add_text("settings", as_code(settings), 0)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One curve a number."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, step: int, numbers: Mapping[str, float], error: str | None) -> None:
        """A point a number, after the last epoch."""
        for name, value in numbers.items():
            self.writer.add_scalar(f"result/{name}", value, step)
        if error is not None:
            self.writer.add_text("error", as_code(error), step)
        self.writer.close()


class MLflow:
    """A run of an MLflow experiment, in a folder or on a server: `mlflow ui --backend-store-uri FOLDER`."""

    def __init__(
        self, uri: str, experiment: str, *, name: str, settings: Mapping[str, Any], id: str | None
    ) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want to be told
        for key, value in IMPATIENT.items():
            os.environ.setdefault(key, value)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of every try
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        folder = None if "://" in uri else Path(uri).resolve()
        self.client = MlflowClient(tracking_uri=uri if folder is None else folder.as_uri())
        self.metric = Metric
        if id is not None:
            self.id = id
            self.client.update_run(id, "RUNNING")
            return
        with alone(folder):
            found = self.client.get_experiment_by_name(experiment)
            where = self.client.create_experiment(experiment) if found is None else found.experiment_id
        self.id = self.client.create_run(where, run_name=name).info.run_id
        named = {safe(key): str(value)[:500] for key, value in flat(settings)}
        params = [Param(key, value) for key, value in named.items()]
        for first in range(0, len(params), 100):  # of so many at a time
            self.client.log_batch(self.id, params=params[first : first + 100])

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """All numbers of an epoch at once."""
        now = int(1000 * time.time())
        self.client.log_batch(
            self.id, metrics=[self.metric(name, value, now, step) for name, value in numbers.items()]
        )

    def finish(self, step: int, numbers: Mapping[str, float], error: str | None) -> None:
        """The results as metrics; the run is `FINISHED`, or `FAILED` with a tag that says why."""
        self.log(0, {f"result/{name}": value for name, value in numbers.items()})
        if error is not None:
            self.client.set_tag(self.id, "error", error[:500])
        self.client.set_terminated(self.id, "FINISHED" if error is None else "FAILED")


class WandB:
    """A run of a Weights & Biases project; offline it is a folder that `wandb sync` uploads."""

    def __init__(
        self,
        project: str,
        folder: str,
        mode: str,
        *,
        name: str,
        settings: Mapping[str, Any],
        id: str | None,
    ) -> None:
        import wandb

        wandb.setup(wandb.Settings(silent=True))  # else it asks at the terminal who is not logged in
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.id = id or uuid.uuid4().hex
        self.run = wandb.init(
            project=project,
            dir=folder,
            mode=mode,  # pyright: ignore[reportArgumentType]
            name=name,
            id=self.id,
            resume="allow",
            config=dict(settings),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """All numbers of an epoch at once."""
        self.run.log(dict(numbers), step=step)

    def finish(self, step: int, numbers: Mapping[str, float], error: str | None) -> None:
        """The results as the run's summary."""
        self.run.summary.update(dict(numbers) | ({} if error is None else {"error": error}))
        self.run.finish(exit_code=0 if error is None else 1)


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Without another job of a sweep that makes the same experiment in a folder; a server sees to that itself."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        yield


def as_code(value: Any) -> str:
    """A text or a value, for a page that shows Markdown: nothing in it is taken for markup."""
    text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
    return "\n".join(f"    {line}" for line in text.splitlines())


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every single setting under its dotted name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def spelled_out(value: Any) -> Any:
    """`value` with bytes of a name that are no text spelled out, in every text it holds."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {key: spelled_out(one) for key, one in value.items()}
    return [spelled_out(one) for one in value] if isinstance(value, list) else value


class Follower:
    """Tells a tracker of one run, each epoch once; if the tracker fails, it warns and is silent from then on.

    Args:
        make: makes the tracker; None for none.
        setting: how the tracker is set; one that is set otherwise is told everything anew.
        folder: of the run.
        settings: of the run.
    """

    def __init__(
        self, make: Callable[..., Tracker] | None, setting: Any, folder: Path, settings: Mapping[str, Any]
    ) -> None:
        self.make = make
        self.key = json.dumps(setting, sort_keys=True)
        self.folder = folder
        self.settings = spelled_out(settings)
        self.tracker: Tracker | None = None

    @property
    def note(self) -> dict[str, Any]:
        """What this tracker was told: its `id` of the run, so many `epochs`, and whether that was all."""
        return record.read_json(self.folder / NOTE).get(self.key) or {"id": None, "epochs": 0, "told": False}

    def tell(self, history: Sequence[Epoch]) -> None:
        """Tell of the epochs that it was not told of."""
        with self.spared():
            if self.make is None or len(history) <= (epochs := self.note["epochs"]):
                return
            tracker = self.opened()
            for step, line in enumerate(history[epochs:], epochs + 1):
                tracker.log(step, numbers_of(line))
            self.write(epochs=len(history), told=False)

    def end(self, error: str | None = None) -> None:
        """Tell of the run's end, from its folder, unless that was done."""
        with self.spared():
            if self.make is None or self.note["told"]:
                return
            if error is None:
                self.tell(read_losses(self.folder / "losses.csv"))
            numbers = record.read_json(self.folder / "metrics.json") if error is None else {}
            if self.make is not None:
                told = {safe(name): float(x) for name, x in numbers.items() if is_number(x)}
                self.opened().finish(self.note["epochs"], told, spelled_out(error))
                self.tracker = None
                self.write(told=error is None)

    def opened(self) -> Tracker:
        """The tracker, from now on at work."""
        if self.tracker is None:
            assert self.make is not None
            self.tracker = self.make(name=self.folder.name, settings=self.settings, id=self.note["id"])
            self.write(id=self.tracker.id)
        return self.tracker

    def write(self, **changed: Any) -> None:
        """Change the note."""
        all_notes = record.read_json(self.folder / NOTE)
        record.write_json(self.folder / NOTE, all_notes | {self.key: self.note | changed})

    @contextmanager
    def spared(self) -> Iterator[None]:
        """Keep what a tracker does wrong away from the run."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except Exception as error:
            self.make = self.tracker = None
            log.warning("%s", trouble(error))


def trouble(error: Exception) -> str:
    """A line about a tracker that failed."""
    said = described(error)
    if isinstance(error, ImportError) and (extra := str(error.name).partition(".")[0]) in EXTRAS:
        said = f"it is not installed; pip install 'anomaly-bench[{extra}]' does that"
    return f"tracker: {said}; the run goes on without it"


def numbers_of(line: Epoch) -> dict[str, float]:
    """The losses of an epoch under the name of its stage, its seconds, and its test AUROC, if it has one."""
    numbers = {f"{line.name}/{name}": value for name, value in line.losses.items()}
    numbers |= {"seconds": line.seconds} | ({} if line.auroc is None else {"auroc": line.auroc})
    return {safe(name): value for name, value in numbers.items()}


def safe(name: str) -> str:
    """A name that every tracker takes: MLflow, the strictest, wants few characters and a path in its plainest form."""
    parts = FOREIGN.sub("_", name)[:LONGEST].split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def is_number(value: Any) -> bool:
    """Whether a tracker can draw it."""
    return isinstance(value, int | float) and not isinstance(value, bool)
