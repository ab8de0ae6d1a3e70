"""How fast this machine trains and scores GANomaly, beside the plain way, a peer, and what the hardware can do.

    python scripts/bench.py --output results/benchmarks/NAME.json    measure; NAME.md, the table, is written too
    python scripts/bench.py --peer anomalib                          anomalib's GANomaly takes part
    python scripts/bench.py --only training,scoring                  some sections only

Images are of 32 x 32, ngf is 64, nz 100, and batches are of 64, for all. A contender is a process of its own that
waits idle for its turn. In a round each is measured once, in an order that moves on by one from round to round.

- `anomaly-bench` is this project as it comes; `without X` is the same with one lever of the trainer off.
- `plain` makes the passes of the official code (samet-akcay/ganomaly) in its order, by plain PyTorch.
- `anomalib` is its torch model and losses in the order of its own training step; on image files, its Engine. Its
  environment is made with `uv` in the user's cache folder.

Runs on Linux and macOS.
"""

import argparse
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_processes import Contender, Ended, run
from bench_table import OURS, table
from PIL import Image

from anomaly_bench import machine, record, versions
from anomaly_bench.data.settings import user_cache
from anomaly_bench.training.device import available_devices
from anomaly_bench.training.trainer import Trainer

LEVERS = (  # an argument of Trainer, and its value without the lever
    ("precision", "fp32"),
    ("channels_last", False),
    ("compile", "off"),
    ("gemm", False),
    ("fold", False),
)
SECTIONS = ("training", "scoring", "limit", "files", "start", "sweep")
PEERS = {"anomalib": "2.7.0"}
SLOW_ROUNDS = 3  # at most, of what starts a process for every sample
SCRIPTS = Path(__file__).resolve().parent

Figures = dict[str, float]
Samplers = dict[str, Callable[[], Figures]]  # by contender


@dataclass(frozen=True)
class Workload:
    """How much is done for one sample: enough to tell it from noise, no more.

    Attributes:
        steps: batches of 64 trained.
        scored: images scored, by batch size.
        files: image files in `train/0.normal`, `test/0.normal` and `test/1.abnormal`.
        folder: image files scored in one go.
        epochs: passes over the training files.
        width: ngf and ndf.
    """

    steps: int
    scored: dict[int, int]
    files: tuple[int, int, int]
    folder: int
    epochs: int
    width: int = 64


WORKLOADS = {
    "cpu": Workload(8, {1: 256, 64: 512, 512: 1024}, (640, 192, 64), 2048, 2),
    "cuda": Workload(500, {1: 500, 64: 32_000, 512: 65_536}, (6400, 1536, 512), 16_384, 5),
    "quick": Workload(1, {1: 2, 64: 64, 512: 512}, (64, 8, 8), 16, 1, width=4),
}


# ------------------------------------------------------------------------------ what is measured


class Bench:
    """The contenders on one device, and the samples taken of them.

    Args:
        device: all compute on it.
        work: how much for one sample.
        peers: the interpreter of each peer.
        scratch: a folder for image files and runs.
    """

    def __init__(self, device: str, work: Workload, peers: dict[str, str], scratch: Path) -> None:
        self.device = device
        self.work = work
        self.peers = peers
        self.scratch = scratch
        self.images = scratch / "images"
        self.everyone: list[Contender] = []
        self.contenders = {OURS: self.spawn("ours")}
        for keyword, off in levers(device):
            self.contenders[f"without {keyword}"] = self.spawn("ours", levers={keyword: off})
        self.contenders |= {name: self.spawn(name) for name in ("plain", *peers)}
        for contender in self.contenders.values():
            contender.ready()
        self.facts = {name: contender.facts for name, contender in self.contenders.items()}
        self.samples: dict[tuple[str, str], list[float]] = defaultdict(list)  # by measure and contender
        self.gflop: dict[str, dict[str, float]] = defaultdict(dict)

    def command(self, contender: str, **changed: Any) -> list[str]:
        """What starts a contender's process."""
        work = self.work
        settings = {
            "contender": contender,
            "device": self.device,
            "threads": None,
            "levers": {},
            "width": work.width,
            "steps": work.steps,
            "scored": work.scored,
            "epochs": work.epochs,
            "files": str(self.images),
            "out": str(self.scratch / "peer"),
            "once": None,
        }
        python = self.peers.get(contender, sys.executable)
        return [python, str(SCRIPTS / "bench_contenders.py"), json.dumps(settings | changed)]

    def spawn(self, contender: str, **changed: Any) -> Contender:
        """Start a contender's process."""
        started = Contender(self.command(contender, **changed))
        self.everyone.append(started)
        return started

    def end(self) -> None:
        """End all processes."""
        for contender in self.everyone:
            contender.end()

    def collect(self, sections: Sequence[str], rounds: int) -> None:
        """Take the samples of all rounds."""
        groups = [group for section in sections for group in getattr(self, section)()]
        for number in range(rounds):
            for at_most, samplers in groups:
                for name in rotated(list(samplers), number) if number < at_most else ():
                    progress(f"round {number + 1} of {rounds}: {name}")
                    for what, value in samplers[name]().items():
                        self.samples[what, name].append(value)
        progress("")

    def training(self) -> list[tuple[float, Samplers]]:
        """Training on images in memory."""
        return [self.of_all("training, images/s", "train")]

    def scoring(self) -> list[tuple[float, Samplers]]:
        """Scoring images in memory."""
        return [self.of_all(f"scoring, batch {size}, images/s", "score", size) for size in self.work.scored]

    def of_all(self, what: str, *request: Any) -> tuple[float, Samplers]:
        """One request to every contender, each round."""
        return np.inf, {
            name: partial(figure, what, contender, *request) for name, contender in self.contenders.items()
        }

    def limit(self) -> list[tuple[float, Samplers]]:
        """What there is to compute for an image, and how fast the hardware multiplies."""
        for name, contender in self.contenders.items():
            if not name.startswith("without"):
                for what, request in (("training", "train"), ("scoring", "score")):
                    self.gflop[what][name] = contender.measure("flops", request)
        hardware = self.spawn("rates").ready()
        types = ["float32", *(["bfloat16"] if self.facts[OURS]["precision"] == "bf16" else [])]
        kinds = {"mm": "matrices of 2048 x 2048", "conv": "convolutions of the encoder, forward and backward"}
        return [
            (np.inf, {f"{words}, {kind}": partial(figure, "GFLOP/s", hardware, short, kind)})
            for kind in types
            for short, words in kinds.items()
        ]

    def files(self) -> list[tuple[float, Samplers]]:
        """From image files: whole commands, and scoring in a process that runs already."""
        draw(self.images, self.work.files)
        draw(self.scratch / "folder", (self.work.folder, 0, 0))
        test, many = str(self.images / "test"), str(self.scratch / "folder/train")
        self.train_files()
        what = f"scoring {self.work.folder:,} image files, images/s"
        whole: Samplers = {OURS: self.train_files}
        score: Samplers = {OURS: self.score_files}
        ready: Samplers = {
            OURS: partial(figure, what, self.contenders[OURS], "files", str(self.finished_run()), many)
        }
        for name in self.peers:
            whole[name] = partial(self.train_files_of_peer, name)
            score[name] = partial(self.score_files_of_peer, name, test)
            ready[name] = partial(figure, what, self.contenders[name], "files", many, False)
            ready[f"{name}, {sum(self.work.files[1:])} with pictures written"] = partial(
                figure, what, self.contenders[name], "files", test, True
            )
        return [(SLOW_ROUNDS, whole), (SLOW_ROUNDS, score), (SLOW_ROUNDS, ready)]

    def finished_run(self) -> Path:
        """The folder of the one run there is."""
        return next((self.scratch / "runs").glob("*/metrics.json")).parent

    def train_files(self) -> Figures:
        """A run by this project's command line, from nothing to its figures; no file was decoded before."""
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)
        typed = {
            "model.ngf": self.work.width,
            "model.ndf": self.work.width,
            "data": "folder",
            "data.root": self.images,
            "data.image_size": 32,
            "trainer.max_epochs": self.work.epochs,
            "trainer.device": self.device,
            "runs_dir": self.scratch / "runs",
            "rerun": "true",
        }
        command = [*COMMAND_LINE, "model=ganomaly", *(f"{key}={value}" for key, value in typed.items())]
        ended = run(command, ANOMALY_BENCH_CACHE=str(self.scratch / "cache"))
        inside = record.read_json(self.finished_run() / "metrics.json")["train_images_per_s"]
        return of_command("training", ended) | {"training within that command, images/s": inside}

    def train_files_of_peer(self, name: str) -> Figures:
        """The same by a peer: training and testing, from nothing to its end."""
        ended = run(self.command(name, once="fit"))
        return of_command("training", ended) | {"training within that command, images/s": ended.said["value"]}

    def score_files(self) -> Figures:
        """Scores of a folder in a CSV file, by this project's command line."""
        output = ("--output", str(self.scratch / "scores.csv"), "--device", self.device)
        return of_command(
            "scoring",
            run([*COMMAND_LINE, "score", str(self.finished_run()), str(self.images / "test"), *output]),
        )

    def score_files_of_peer(self, name: str, folder: str) -> Figures:
        """The same by a peer, which writes no file."""
        return of_command("scoring", run(self.command(name, once="predict", files=folder)))

    def start(self) -> list[tuple[float, Samplers]]:
        """How long it takes until the first step is done, and how much memory training needs."""
        commands = {OURS: self.command("ours", once="first"), "plain": self.command("plain", once="first")}
        for name in self.peers:
            draw(self.images, self.work.files)
            commands[name] = self.command(name, once="first")
            commands[f"{name}, Engine"] = self.command(name, once="engine")
        return [(SLOW_ROUNDS, {name: partial(start_of, command) for name, command in commands.items()})]

    def sweep(self) -> list[tuple[float, Samplers]]:
        """As many processes of one thread as there are cores, against one process with all threads."""
        cores = min(8, machine.cores())
        what = "sweep, images/s in all"
        everyone: Samplers = {}
        for name in (OURS, *self.peers):
            single = [self.spawn("ours" if name == OURS else name, threads=1) for _ in range(cores)]
            for contender in single:
                contender.ready()
            everyone[name] = partial(figure, what, self.contenders[name], "train")
            everyone[f"{name}, {cores} processes of 1 thread"] = partial(side_by_side, what, single)
        return [(np.inf, everyone)]


COMMAND_LINE = (sys.executable, "-m", "anomaly_bench.cli")


def levers(device: str) -> list[tuple[str, Any]]:
    """The levers that this Trainer has, and that change something on this device."""
    known = inspect.signature(Trainer).parameters
    return [(keyword, off) for keyword, off in LEVERS if keyword in known and changes(device, keyword, off)]


def changes(device: str, keyword: str, off: Any) -> bool:
    """Whether a Trainer without the lever would be another."""
    without: dict[str, Any] = {"device": device, keyword: off}
    return getattr(Trainer(**without), keyword) != getattr(Trainer(device=device), keyword)


def figure(what: str, contender: Contender, *request: Any) -> Figures:
    """What a contender answers, under a name."""
    return {what: contender.measure(*request)}


def side_by_side(what: str, contenders: Sequence[Contender]) -> Figures:
    """The sum of what contenders reach that train at the same time."""
    for contender in contenders:
        contender.ask("train")
    return {what: sum(contender.answer()["value"] for contender in contenders)}


def of_command(what: str, ended: Ended) -> Figures:
    """What a command on image files took."""
    return {
        f"{what} command on image files, s": ended.seconds,
        f"peak memory of the {what} command, MiB": ended.peak,
    }


def start_of(command: Sequence[str]) -> Figures:
    """Start-up and memory of a process that trains a few steps."""
    ended = run(command)
    found = {"start to the end of the first step, s": ended.first, "peak memory of training, MiB": ended.peak}
    device = ended.said.get("device_mib")
    return found if device is None else found | {"peak memory on the device, MiB": device}


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The names, another one first in each round."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def draw(folder: Path, counts: tuple[int, int, int]) -> None:
    """Image files of noise, RGB, in GANomaly's layout."""
    rng = np.random.default_rng(0)
    for part, count in zip(("train/0.normal", "test/0.normal", "test/1.abnormal"), counts, strict=True):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)):
            Image.fromarray(pixels).save(folder / part / f"{number:05d}.png")


def progress(text: str) -> None:
    """Say on a terminal what is going on."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------ the whole


def peer_python(name: str) -> str:
    """The interpreter of a peer's environment, which is made where there is none yet, with the torch used here."""
    used = {package: metadata.version(package).partition("+")[0] for package in ("torch", "torchvision")}
    wanted = [f"{name}=={PEERS[name]}", *(f"{package}=={version}" for package, version in used.items())]
    place = user_cache() / "bench" / "-".join(wanted)
    python = place / "bin/python"
    if (place / "complete").exists():
        return str(python)
    if shutil.which("uv") is None:
        sys.exit(f"bench: --peer {name} needs uv, to make an environment: pip install uv")
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(["uv", "venv", "--python", sys.executable, place], check=True)
    install = ["uv", "pip", "install", "--compile-bytecode", "--python", python]
    subprocess.run([*install, *wanted], check=True)
    (place / "complete").touch()
    return str(python)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """All there is to say of this machine, ready for JSON."""
    peers = {name: peer_python(name) for name in given.peer}
    report = {
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "git": versions.git_revision(),
        "machine": machine.described(),
        "versions": versions.of_packages(),
        "peers": {name: PEERS[name] for name in peers},
        "rounds": given.rounds,
        "quick": given.quick,
        "load_average": {"before": os.getloadavg()},
        "devices": {},
    }
    for device in given.device:
        with tempfile.TemporaryDirectory() as scratch:
            work = WORKLOADS["quick" if given.quick else device.partition(":")[0]]
            bench = Bench(device, work, peers, Path(scratch))
            bench.collect(given.only, given.rounds)
            bench.end()
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else report["machine"]["cpu"]
        report["devices"][device] = {
            "name": name,
            "contenders": bench.facts,
            "samples": [
                {"what": what, "contender": who, "values": values}
                for (what, who), values in bench.samples.items()
            ],
            "gflop": bench.gflop,
        }
    report["load_average"]["after"] = os.getloadavg()
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    devices = [device for device in available_devices()[:2] if device != "mps"]
    parser.add_argument("--output", type=Path, help="JSON file to write, and the same with .md for the table")
    parser.add_argument("--rounds", type=int, default=5, help="of measurements (%(default)s)")
    parser.add_argument("--device", type=one_of(devices), default=devices, help=f"{','.join(devices)} (all)")
    parser.add_argument("--only", type=one_of(SECTIONS), default=SECTIONS, help=f"{','.join(SECTIONS)} (all)")
    parser.add_argument("--peer", type=one_of(list(PEERS)), default=[], help=f"{','.join(PEERS)} (none)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of next to nothing, to see that it works"
    )
    given = parser.parse_args(arguments)
    given.rounds = 1 if given.quick else given.rounds
    report = measured(given)
    print(table(report))
    if given.output:
        record.write_json(given.output, report)
        record.write_text(given.output.with_suffix(".md"), table(report))


def one_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """A parser of names with commas between them."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := sorted(set(found) - set(allowed)):
            raise argparse.ArgumentTypeError(f"{unknown}: allowed are {', '.join(allowed)}")
        return found

    return names


if __name__ == "__main__":
    main()
