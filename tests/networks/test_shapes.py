import pytest

from anomaly_bench.compose import settings_of
from anomaly_bench.errors import SettingError
from anomaly_bench.targets import build


@pytest.mark.parametrize(
    "model", ["ganomaly", "ognet", "alocc", "adgan", "geotrans", "simclr", "uninformed_students"]
)
def test_rows_are_refused_with_what_takes_them(model: str) -> None:
    settings, _ = settings_of([f"model={model}"])
    with pytest.raises(SettingError, match=r"needs images, found rows of shape .*ocsvm.*recommend"):
        build(settings.model, (7,))
