"""Run whole tables of papers, timed end to end, and put them into results/. Meant for a machine with a GPU.

    python scripts/whole_tables.py                                    the MNIST and CIFAR-10 tables of GANomaly
    python scripts/whole_tables.py --experiments ganomaly_mnist hydra.launcher.n_jobs=8 trainer.compile=graph

What follows the experiments is passed on to `anomaly-bench`. Records stay in `runs/`, so that what was finished is not
computed again; `results/NAME/seconds.json` says how long each call of the command took, and with which settings.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench import machine, record

EXPERIMENTS = ("ganomaly_mnist", "ganomaly_cifar10")
CHECKOUT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Run each experiment, say how long it took, and publish what it came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", default=",".join(EXPERIMENTS), help="with commas (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (%(default)s)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="(%(default)s)")
    given, overrides = parser.parse_known_args(arguments)
    for name in given.experiments.split(","):
        seconds = run(name, given.runs / name, overrides)
        print(f"{name}: {seconds:.0f} s, {' '.join(overrides) or 'as it comes'}")
        publish = [sys.executable, str(CHECKOUT / "scripts" / "publish.py")]
        subprocess.run([*publish, str(given.runs / name), str(given.results / name)], check=True)
        note_time(given.results / name / "seconds.json", seconds, overrides)


def run(experiment: str, runs_dir: Path, overrides: Sequence[str]) -> float:
    """Seconds that the command took from its start to its table."""
    command = [sys.executable, "-m", "anomaly_bench.cli", f"experiment={experiment}", f"runs_dir={runs_dir}"]
    started = time.perf_counter()
    subprocess.run([*command, *overrides], check=True)
    return time.perf_counter() - started


def note_time(path: Path, seconds: float, overrides: Sequence[str]) -> None:
    """Add one call of the command to those noted in `path`."""
    calls = record.read_json(path).get("calls", [])
    facts = {"seconds": seconds, "overrides": list(overrides), "machine": machine.described()}
    record.write_json(path, {"calls": [*calls, facts]})


if __name__ == "__main__":
    main()
