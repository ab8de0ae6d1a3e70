"""How jobs are shared out, and how workers are started, asked, replaced and stopped. The workers here do no work."""

import os
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from anomaly_bench import sweep
from anomaly_bench.sweep import Job, Workers, shares

FAKE = """
import json, os, sys, time
print("worker", os.getpid(), "says hello", file=sys.stderr)
threads = {os.environ[f"{library}_NUM_THREADS"] for library in ("OMP", "MKL", "OPENBLAS")}
for line in sys.stdin:
    what, of = json.loads(line)
    if what == "training":
        print(json.dumps([of.get("training"), not of.get("looks")]), flush=True)
        continue
    answer = None
    if what == "load":
        time.sleep(0.05)
        answer = of.get("load fails")
    with open(os.environ["LOG"], "a") as log:
        print(what, of["data"]["name"], of["number"], os.getpid(), *threads, file=log)
    if what == "run":
        exec(of.get("do", ""))
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def said(monkeypatch, tmp_path):
    """Workers that only write down what they were asked: `[what, data, number, pid, threads]` each."""
    monkeypatch.setattr(sweep, "START", FAKE)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return lambda: [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def job(number: int, data: str = "mnist", **config: object) -> Job:
    return Job(number, [f"seed={number}"], {"data": {"name": data}, "number": number, **config})


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be another machine."""

    def pretend(cores: int, gib: float = 64.0, threads: str | None = None) -> None:
        monkeypatch.setattr(sweep, "cores", lambda: cores)
        monkeypatch.setattr(sweep, "free_gib", lambda: gib)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)

    return pretend


@pytest.mark.parametrize(
    ("cores", "jobs", "wanted", "expected"),
    [
        (2, 30, None, (2, 1)),
        (16, 30, None, (16, 1)),
        (16, 4, None, (4, 4)),  # cores that would be idle are given to the jobs there are
        (16, 10, None, (10, 1)),
        (16, 1, None, (1, 16)),
        (1, 30, None, (1, 1)),
        (16, 30, 1, (1, 16)),
        (16, 30, 4, (4, 4)),
        (2, 30, 4, (4, 1)),
        (16, 3, 4, (3, 5)),
    ],
)
def test_every_core_has_one_job(machine, cores, jobs, wanted, expected):
    machine(cores)
    assert shares(jobs, wanted) == expected


@pytest.mark.parametrize(
    ("threads", "expected"), [("1", (8, 1)), ("4", (2, 4)), ("16", (1, 16)), ("", (8, 1)), ("4,2", (8, 1))]
)
def test_threads_that_the_user_has_set_are_kept(machine, threads, expected):
    machine(8, threads=threads)
    assert shares(30) == expected


def test_no_more_workers_than_have_memory(machine):
    machine(16, gib=5.5)
    assert shares(30) == (5, 3)
    assert shares(30, wanted=10) == (10, 1)
    machine(16, gib=0.3)
    assert shares(30) == (1, 16)


def test_workers_are_reused_and_a_data_set_is_loaded_once(said):
    jobs = [job(number, data) for number in range(12) for data in ("mnist", "svhn")]
    with Workers(3, threads=5) as workers:
        over = list(workers.run(jobs))
    assert sorted(one.number for one, _ in over) == sorted(one.number for one in jobs)
    assert [error for _, error in over if error] == []
    asked = said()
    assert sorted(data for what, data, *_ in asked if what == "load") == ["mnist", "svhn"]
    for data in ("mnist", "svhn"):
        assert next(what for what, of, *_ in asked if of == data) == "load"
    assert sum(what == "run" for what, *_ in asked) == 24
    assert 2 <= len({pid for *_, pid, _ in asked}) <= 3
    assert {threads for *_, threads in asked} == {"5"}


def test_jobs_are_drawn_as_workers_become_free(said):
    """So that the jobs of a long sweep are never all in memory."""
    drawn = []

    def jobs():
        for number in range(20):
            drawn.append(number)
            yield job(number)

    with Workers(2, threads=1) as workers:
        for over, _ in enumerate(workers.run(jobs()), 1):
            assert len(drawn) <= over + 2


def test_what_a_worker_says_is_passed_on(said, capfd):
    with Workers(1, threads=1) as workers:
        assert [error for _, error in workers.run([job(0)])] == [None]
        (pid,) = {worker.process.pid for worker in workers.all}
    assert f"worker {pid} says hello\n" in capfd.readouterr().err


def test_a_worker_may_say_what_is_no_text(said, capfd):
    loud = "sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.stderr.flush()"
    with Workers(1, threads=1) as workers:
        assert [error for _, error in workers.run([job(0, do=loud)])] == [None]
    assert "caf\N{REPLACEMENT CHARACTER}\n" in capfd.readouterr().err


def test_a_file_beside_the_user_is_no_module_of_a_worker(said, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Workers(1, threads=1) as workers:
        assert [error for _, error in workers.run([job(0)])] == [None]


@pytest.mark.parametrize(
    ("answer", "kind"), [("print(json.dumps('cpu' if of == 'auto' else of))", "cpu"), ("os._exit(3)", None)]
)
def test_a_worker_that_has_told_the_device_is_free_again(said, monkeypatch, answer, kind):
    monkeypatch.setattr(sweep, "START", f"import json, os, sys\nwhat, of = json.loads(input())\n{answer}")
    with Workers(1, threads=1) as workers:
        assert workers.device() == kind
        assert (workers.idle == workers.all) is (kind is not None)


def test_a_worker_that_says_much_does_not_wait_for_a_reader(said, monkeypatch):
    class Gone:
        def write(self, _):
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stderr", Gone())
    with Workers(1, threads=1) as workers:
        loud = "print('much ' * 100_000, file=sys.stderr); print('again', file=sys.stderr, flush=True)"
        assert [error for _, error in workers.run([job(0, do=loud), job(1, do=loud)])] == [None, None]


def test_a_worker_that_is_killed_fails_its_job_alone_and_is_replaced(said):
    kill = "import signal; os.kill(os.getpid(), signal.SIGKILL)"
    jobs = [job(number, do=kill if number in (1, 4) else "") for number in range(8)]
    jobs.append(job(8, do="print('[1', end='', flush=True); os._exit(3)"))  # half an answer
    with Workers(2, threads=1) as workers:
        errors = {one.number: error for one, error in workers.run(jobs)}
    assert {number for number, error in errors.items() if error} == {1, 4, 8}
    assert errors[1] == "its worker was killed by SIGKILL (out of memory?)"
    assert errors[8] == "its worker ended with exit code 3"
    assert len({pid for *_, pid, _ in said()}) >= 3


def test_a_worker_killed_while_it_loads_does_not_lock_the_others_out(said, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "START", FAKE.replace("time.sleep(0.05)", "exec(of.get('do', ''))"))
    jobs = [job(0, do="os._exit(9)"), job(1), job(2)]
    with Workers(2, threads=1) as workers:
        errors = {one.number: error for one, error in workers.run(jobs)}
    assert [errors[0], errors[1], errors[2]] == ["its worker ended with exit code 9", None, None]
    assert sum(what == "load" for what, *_ in said()) == 1


def test_who_would_learn_the_same_waits_for_it_while_others_go_on(said):
    slow = [
        job(number, training="a", do="time.sleep(0.5)") for number in (0, 1, 2)
    ]  # the first of them learns
    with Workers(2, threads=1) as workers:
        over = list(workers.run(iter([*slow, job(3), job(4, training="b")])))
    assert sorted((one.number, error) for one, error in over) == [(number, None) for number in range(5)]
    runs = [int(number) for what, _, number, *_ in said() if what == "run"]
    assert runs.index(0) < runs.index(1)
    assert runs.index(0) < runs.index(2)
    assert {3, 4} < set(runs[: min(runs.index(1), runs.index(2))])


def test_who_has_to_look_at_every_epoch_does_not_wait_and_is_waited_for(said):
    first, second = (job(number, training="a", looks=True, do="time.sleep(0.5)") for number in (0, 1))
    with Workers(2, threads=1) as workers:
        assert len(list(workers.run([first, second, job(2, training="a")]))) == 3
    runs = [(number, pid) for what, _, number, pid, _ in said() if what == "run"]
    assert [number for number, _ in runs][2] == "2"
    assert runs[0][1] != runs[1][1]


def test_who_waited_for_one_that_was_killed_goes_on(said):
    jobs = [job(0, training="a", do="time.sleep(0.2); os._exit(9)"), *(job(n, training="a") for n in (1, 2))]
    with Workers(2, threads=1) as workers:
        errors = {one.number: error for one, error in workers.run(jobs)}
    assert errors == {0: "its worker ended with exit code 9", 1: None, 2: None}


def test_what_one_that_was_killed_would_have_learned_is_learned_once(said):
    note = "print('ended', 'mnist', of['number'], 0, 0, file=open(os.environ['LOG'], 'a'))"
    jobs = [
        job(0, training="a", do="time.sleep(0.2); os._exit(9)"),
        *(job(number, training="a", do=f"time.sleep(0.3); {note}") for number in (1, 2)),
    ]
    with Workers(2, threads=1) as workers:
        list(workers.run(iter(jobs)))
    order = [line[0] + line[2] for line in said() if line[0] in ("run", "ended") and line[2] != "0"]
    assert order in (["run1", "ended1", "run2", "ended2"], ["run2", "ended2", "run1", "ended1"])


def test_data_that_cannot_be_loaded_fail_each_job_that_wants_them(said):
    jobs = [
        job(0, "bad", **{"load fails": "not found"}),
        job(1, "good"),
        job(2, "bad", **{"load fails": "no"}),
    ]
    with Workers(2, threads=1) as workers:
        errors = {one.number: error for one, error in workers.run(jobs)}
    assert errors == {0: "not found", 1: None, 2: "no"}
    assert [number for what, _, number, *_ in said() if what == "run"] == ["1"]


def test_leaving_stops_workers_in_the_middle_of_a_job_and_begins_no_other(said, monkeypatch, tmp_path):
    busy = f"open({str(tmp_path / 'busy')!r}, 'w').close(); time.sleep(60)"
    monkeypatch.setattr(sweep, "GRACE", 0.2)

    def ctrl_c():
        while not (tmp_path / "busy").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ctrl_c).start()
    workers = Workers(1, threads=1)
    with pytest.raises(KeyboardInterrupt), workers:
        list(workers.run([job(0, do=busy), job(1), job(2)]))
    assert [worker.process.returncode for worker in workers.all] == [-signal.SIGKILL]
    assert not Path(workers.folder.name).exists()
    assert {number for _, _, number, *_ in said()} == {"0"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def test_who_has_left_takes_no_worker(said):
    with Workers(1, threads=1) as workers:
        pass
    with pytest.raises(sweep.WorkerDiedError, match="stopped"):
        workers.take()


def test_what_is_kept_of_a_job_is_gone_when_it_is_over(said):
    """The memory of the process that starts the workers is flat."""
    known = []

    def jobs():
        for number in range(60):
            known.append(weakref.ref(one := job(number)))
            yield one

    with Workers(2, threads=1) as workers:
        for _ in workers.run(jobs()):
            assert sum(one() is not None for one in known) <= 6
