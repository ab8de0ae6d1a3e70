"""What the README tells a reader to type works as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.sweeper import Sweeper  # noqa: F401 - loads the plugins
from sklearn.datasets import load_digits

from anomaly_bench.cli import SWEEP, answer
