"""The launcher of anomaly-bench's sweeps. It lies here because Hydra takes launchers from this namespace only."""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from anomaly_bench.errors import SettingError
from anomaly_bench.refusals import as_typed
from anomaly_bench.sweep import Job, Workers, shares

log = logging.getLogger(__name__)


class SideBySide(Launcher):
    """Runs jobs side by side where that has the higher throughput, else one after another in this process.

    Args:
        n_jobs: jobs at a time; `auto` is what `anomaly_bench.sweep.shares` says on a CPU, and one elsewhere.
    """

    def __init__(self, n_jobs: int | str = "auto") -> None:
        if n_jobs != "auto" and (type(n_jobs) is not int or n_jobs < 1):
            raise SettingError(f"hydra.launcher.n_jobs={n_jobs}: allowed are auto, or a number from 1")
        self.wanted = None if n_jobs == "auto" else int(n_jobs)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to every launcher."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs of a batch. What came of them is in their records: nothing of it is kept here."""
        setup_globals()
        self.log_as_configured()
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        configs = self.configs(job_overrides, initial_job_idx)
        workers, threads = shares(len(job_overrides), self.wanted)
        if workers > 1:
            with Workers(workers, threads) as pool:
                first = next(configs)
                configs = chain([first], configs)
                if self.wanted is not None or on_cpu(pool, first.trainer.device):
                    log.info(
                        "%d jobs, %d at a time, threads of each: %d", len(job_overrides), workers, threads
                    )
                    self.side_by_side(pool, configs, len(job_overrides))
                    return [
                        JobReturn(one, status=JobStatus.COMPLETED, _return_value=self.objective(number))
                        for number, one in enumerate(job_overrides, initial_job_idx)
                    ]
        log.info("%d jobs, one after another", len(job_overrides))
        return [self.here(config) for config in configs]

    def configs(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Iterator[DictConfig]:
        """Compose the jobs, each when it is asked for."""
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
                config.hydra.overrides.task = as_typed(config.hydra.overrides.task)
            yield config

    def here(self, config: DictConfig) -> JobReturn:
        """Run a job in this process."""
        log.info("#%d: %s", config.hydra.job.num, " ".join(filter_overrides(config.hydra.overrides.task)))
        done = run_job(
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self.context,
        )
        self.log_as_configured()
        done.cfg = done.hydra_cfg = None
        return done

    def side_by_side(self, pool: Workers, configs: Iterator[DictConfig], number: int) -> None:
        """Run jobs on workers, under a bar of those that are over."""
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        from anomaly_bench.jobs import leave_note

        with logging_redirect_tqdm(), tqdm(total=number, unit=" jobs", disable=None) as bar:
            for job, error in pool.run(map(job_of, configs)):
                if error is not None:
                    note = {"overrides": job.overrides, "error": error}
                    leave_note(self.config.runs_dir, job.number, note)
                bar.update()

    def objective(self, number: int) -> float | None:
        """What a job on a worker came to, as its note says."""
        from anomaly_bench.jobs import notes_of_sweep
        from anomaly_bench.record import read_json

        return read_json(notes_of_sweep(self.config.runs_dir) / f"{number}.json").get("objective")

    def log_as_configured(self) -> None:
        """Set logging up for this process; a job sets it up for itself."""
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)


def job_of(config: DictConfig) -> Job:
    """What a worker is told of a job."""
    values = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    assert isinstance(values, dict)
    return Job(
        config.hydra.job.num, list(config.hydra.overrides.task), {str(k): v for k, v in values.items()}
    )


def on_cpu(pool: Workers, device: str) -> bool:
    """Whether `trainer.device` means the CPU, which for `auto` only torch knows."""
    return device == "cpu" or (device == "auto" and pool.device() == "cpu")
