"""Settings of every test."""

import os

# The networks of the tests are so small that a second thread only waits; programs that tests start do the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
