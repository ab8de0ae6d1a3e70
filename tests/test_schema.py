"""What the types of the settings add to them."""

import pytest
from omegaconf import OmegaConf

from anomaly_bench import schema  # noqa: F401 - brings `on_data`


@pytest.mark.parametrize(
    ("data", "hidden", "rate"), [("thyroid", [12, 4], 0.1), ("mnist", [60, 30, 10], 0.2)]
)
def test_what_depends_on_the_data_set_is_its_own_or_that_of_all_others(
    data: str, hidden: list[int], rate: float
) -> None:
    settings = OmegaConf.create(
        {
            "data": {"name": data},
            "model": {
                "hidden": "${on_data:{thyroid:[12,4]},[60,30,10]}",
                "lr": "${on_data:{thyroid:0.1},0.2}",
            },
        }
    )
    assert OmegaConf.to_container(settings, resolve=True)["model"] == {"hidden": hidden, "lr": rate}  # pyright: ignore
