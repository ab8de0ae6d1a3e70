import re

import pytest
from omegaconf import OmegaConf

from anomaly_bench.compose import settings_of
from anomaly_bench.errors import SettingError
from anomaly_bench.targets import build, declares


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [("pretrained_mahalanobis", True), ("knn", False), ("ensemble", False), ("ssd_if", False)],
)
def test_a_run_says_whether_it_takes_weights_from_elsewhere(model: str, pretrained: bool) -> None:
    settings, _ = settings_of([f"model={model}"])
    assert declares(settings.model, "pretrained") == pretrained
    assert declares(settings.model, "transductive") == (model == "ssd_if")


@pytest.mark.parametrize(
    ("model", "small"),
    [
        ("ganomaly", "model.nz=0"),
        ("ae", "model.width=0"),
        ("aae", "model.width=0"),
        ("egbad", "model.hidden=1"),
        ("alad", "model.d_zz.0=0"),
        ("ensemble", "model.members.vae.features.code=0"),
    ],
)
def test_a_layer_without_units_is_refused_with_what_may_be_too_small(model: str, small: str) -> None:
    settings, _ = settings_of([f"model={model}", "data=digits"])
    OmegaConf.update(settings, small.partition("=")[0].replace(".0", "[0]"), int(small[-1]))
    with pytest.raises(SettingError, match=r"empty; too small is one of .*" + re.escape(small)):
        build(settings.model, (1, 32, 32))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("ae", "model.network=conv: .* model.network=dense takes both"),
        ("ocsvm_ae", "model.features.network=conv: .* model.features.network=dense takes both"),
        ("ensemble", "model.members.ae.features.network=conv: .* model.members.ae.features.network=dense"),
        ("pretrained", "model.features.backbone=none: timm has none"),
    ],
)
def test_what_is_refused_within_a_method_is_named_from_its_top(model: str, named: str) -> None:
    wrong = ["model.features.backbone=none"] if model == "pretrained" else []
    settings, _ = settings_of([f"model={model}", *wrong])
    with pytest.raises(SettingError, match=f"^{named}"):
        build(settings.model, (3, 32, 32) if wrong else (6,))
