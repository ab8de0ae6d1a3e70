import subprocess

import numpy as np

from anomaly_bench import versions


def test_versions_of_packages(monkeypatch):
    monkeypatch.setattr(versions, "PACKAGES", ("numpy", "no-such-package"))
    found = versions.of_packages()
    assert found["numpy"] == np.__version__
    assert found["no-such-package"] is None


def test_the_revision_of_a_checkout_says_whether_it_was_changed(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        answer = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return answer.stdout.strip()

    def revision() -> str | None:
        return versions.git_revision.__wrapped__()

    (tmp_path / "package").mkdir()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "package" / "versions.py"))
    assert revision() is None
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    assert revision() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert revision() == git("rev-parse", "HEAD") + "-dirty"
