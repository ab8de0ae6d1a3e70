"""The versions that a number was made by: the checkout's revision, Python's and the packages'."""

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

PACKAGES = ("anomaly-bench", "torch", "torchvision", "numpy", "scikit-learn")


@cache
def git_revision() -> str | None:
    """The commit of the checkout this package lies in, with `-dirty` after local changes; None elsewhere."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def of_packages() -> dict[str, str | None]:
    """Versions of Python and of the packages that can move a number; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
