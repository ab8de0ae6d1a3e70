"""What there is to choose from, and what `--help` says, read off the folder of configs."""

import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from anomaly_bench.errors import SettingError
from anomaly_bench.places import CONFIGS

GROUPS = {"models": "model", "data": "data", "protocols": "protocol", "experiments": "experiment"}
"""Groups that `list` shows, by the names it knows them by."""
USAGE = """\
anomaly-bench trains and scores anomaly detectors and writes the papers' AUROC tables.

  anomaly-bench                                                     a first run: GANomaly on small digits
  anomaly-bench model=ganomaly data=mnist abnormal_class=2          one run
  anomaly-bench -m model=ganomaly,ae data=mnist 'abnormal_class=range(10)' seed=0,1
  anomaly-bench report [RUNS_DIR]                                   tables and pictures from finished runs
  anomaly-bench score RUN_DIR FILES_OR_FOLDER --output scores.csv   a trained detector on new files
  anomaly-bench export RUN_DIR --format onnx                        a trained detector as one file: onnx or torch
  anomaly-bench recommend data=folder data.root=FOLDER              a short race of a few methods on your data
  anomaly-bench list [models|data|protocols|experiments]            what there is, a line each

Groups, group=choice:
{groups}

Most used keys, key=value:
  abnormal_class normal_class     a class name, or an index
  seed runs_dir rerun             rerun=true computes a finished run again
  data.root data.image_size data.limit data.download
  trainer.device                  auto, cpu, cuda, cuda:1, mps
  trainer.precision               auto, fp32, bf16
  trainer.max_epochs trainer.epoch_scale trainer.batch_size trainer.eval_every
  hydra.launcher.n_jobs           jobs of a sweep at a time: auto (on a CPU one a core), or a number
  hydra/launcher hydra/sweeper    local_joblib, slurm, local_ray; tune (by Optuna): see the README
  model.KEY                       whatever the method has: anomaly-bench model=ganomaly --cfg job -p model

anomaly-bench --cfg job          the settings of a run, without running it
anomaly-bench --version          its version
anomaly-bench --hydra-help       the flags of the command line
anomaly-bench -sc install=bash   shell completion: see the README"""


def usage(own: Path | None = None) -> str:
    """What `--help` prints, with the configs of one's `own` folder among the choices."""
    folders = {path.name for place in places(own) for path in place.iterdir() if path.is_dir()} - {"hydra"}
    found = {group: choices(group, own) for group in sorted(folders)}
    lines = [f"{group}: {', '.join(sorted(names))}" for group, names in found.items() if names]
    wrapped = [textwrap.fill(line, 110, subsequent_indent="    ") for line in lines]
    return USAGE.format(groups="\n".join(wrapped))


def lines_of_choices(what: str | None = None, own: Path | None = None) -> Iterator[str]:
    """A line for each choice of one of `GROUPS`, or of all under their names."""
    for title, group in GROUPS.items():
        found = choices(group, own)
        if what not in (None, title) or not found:
            continue
        if what is None:
            yield title
        yield from (f"  {name:<26}{headline(path)}" for name, path in sorted(found.items()))


def choices(group: str, own: Path | None) -> dict[str, Path]:
    """The configs of a group by name; the package's stand before those of one's `own` folder."""
    return {path.stem: path for place in places(own) for path in (place / group).glob("*.yaml")}


def places(own: Path | None) -> list[Path]:
    """Folders of configs, of which the last decides."""
    if own is not None and not own.is_dir():
        raise SettingError(f"--config-dir {own}: there is no such folder")
    return [place for place in (own, CONFIGS) if place is not None]


def headline(path: Path) -> str:
    """The first line of a config's first comment, which says what it is, to the end of its last sentence.

    Hydra's own `# @package` stands above it.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((number for number, line in enumerate(lines) if re.match("# [^@]", line)), len(lines))
    said = ""
    for line in itertools.takewhile(lambda line: line.startswith("# "), lines[first:]):
        text = line.lstrip("# ").rstrip()
        if not said:
            said = text
        elif not said.endswith("."):
            said += " " + re.split(r"(?<=\.) ", text)[0]
    return said
