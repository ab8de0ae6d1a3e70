"""The launcher of anomaly-bench's sweeps. It lies here because Hydra takes launchers from this namespace only."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus, configure_log
from omegaconf import OmegaConf, open_dict

from anomaly_bench.errors import SettingError
from anomaly_bench.sweep import Job, Workers, shares

log = logging.getLogger(__name__)


class SideBySide(BasicLauncher):
    """Runs jobs side by side where that has the higher throughput, else one after another as the basic launcher.

    Args:
        n_jobs: jobs at a time; `auto` is what `anomaly_bench.sweep.shares` says on a CPU, and one elsewhere.
    """

    def __init__(self, n_jobs: int | str = "auto") -> None:
        super().__init__()
        if n_jobs != "auto" and (type(n_jobs) is not int or n_jobs < 1):
            raise SettingError(f"hydra.launcher.n_jobs={n_jobs}: allowed are auto, or a number from 1")
        self.wanted = None if n_jobs == "auto" else int(n_jobs)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs of a batch; what is known of them afterwards is in their records."""
        workers, threads = shares(len(job_overrides), self.wanted)
        if workers > 1 and self.side_by_side(job_overrides, initial_job_idx, workers, threads):
            return [JobReturn(overrides=one, status=JobStatus.COMPLETED) for one in job_overrides]
        return super().launch(job_overrides, initial_job_idx)

    def side_by_side(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, workers: int, threads: int
    ) -> bool:
        """Run the jobs on workers; False, and none was run, where they are better run one after another."""
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        from anomaly_bench.cli import leave_note

        assert self.config is not None
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        with Workers(workers, threads) as pool:
            jobs = self.jobs(job_overrides, initial_job_idx)
            first = next(jobs)
            if self.wanted is None and not on_cpu(pool, first.config["trainer"]["device"]):
                return False
            log.info("%d jobs, %d at a time, threads of each: %d", len(job_overrides), workers, threads)
            with logging_redirect_tqdm(), tqdm(total=len(job_overrides), unit=" jobs", disable=None) as bar:
                for job, error in pool.run(chain([first], jobs)):
                    if error is not None:
                        note = {"overrides": job.overrides, "error": error}
                        leave_note(self.config.runs_dir, job.number, note)
                    bar.update()
        return True

    def jobs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Iterator[Job]:
        """Compose the jobs, one when it is asked for."""
        assert self.config is not None
        assert self.hydra_context is not None
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = number
                config.hydra.job.num = number
            values = cast(dict, OmegaConf.to_container(config, resolve=False, enum_to_str=True))
            yield Job(number, list(config.hydra.overrides.task), values)


def on_cpu(pool: Workers, device: str) -> bool:
    """Whether `trainer.device` means the CPU, which for `auto` only torch knows."""
    return device == "cpu" or (device == "auto" and pool.device("auto") == "cpu")
