"""Settings of every test."""

import os
import signal

import pytest

# The networks of the tests are so small that a second thread only waits; programs that tests start do the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background job ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs come without their pictures, which take longer than all else of a small one."""
    monkeypatch.setattr("anomaly_bench.run.draw_run", lambda *_: None)
