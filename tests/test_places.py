"""Where the configs lie."""

import runpy
import shutil
from pathlib import Path

from anomaly_bench import places


def test_configs_in_the_package_come_before_a_folder_of_that_name_beside_it(tmp_path: Path) -> None:
    """As in `site-packages`, where another package may bring one."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "anomaly_bench").mkdir()
    module = shutil.copy(places.__file__, tmp_path / "anomaly_bench")
    assert runpy.run_path(module)["CONFIGS"] == tmp_path / "configs"
    (tmp_path / "anomaly_bench/configs").mkdir()
    assert runpy.run_path(module)["CONFIGS"] == tmp_path / "anomaly_bench/configs"
