import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from anomaly_bench.compose import settings_of
from anomaly_bench.errors import SettingError
from anomaly_bench.targets import build, check_group, check_targets, declares


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


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody's own, on the path."""
    package = tmp_path / "mine_of_targets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "unready.py").write_text("import nothere\n")
    (package / "unwritten.py").write_text("class Shallow\n")
    (package / "empty.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return package


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            "mine_of_targets.unready.Shallow",
            "importing mine_of_targets.unready failed: ModuleNotFoundError: No module named 'nothere'",
        ),
        ("mine_of_targets.unwritten.Shallow", "importing mine_of_targets.unwritten failed: SyntaxError: "),
        ("mine_of_targets.empty.Shalow", "mine_of_targets.empty has no Shalow"),
        ("mine_of_targets.emty.Shallow", "mine_of_targets has no emty"),
        ("yours_of_targets.empty.Shallow", "no package yours_of_targets: set PYTHONPATH or install it"),
        ("Shallow", "a path such as package.module.Name is needed"),
        ("..Shallow", "a path such as package.module.Name is needed"),
        ("os.path.join", "not a Detector of this or an installed package"),
    ],
)
@pytest.mark.usefixtures("mine")
def test_a_target_that_cannot_be_had_is_refused_for_what_is_wrong_with_it(target: str, said: str) -> None:
    with pytest.raises(SettingError) as refusal:
        check_targets(OmegaConf.create({"_target_": target}))
    assert str(refusal.value).startswith(f"model._target_={target}: {said}")
    assert "\n" not in str(refusal.value)
    if not said.startswith("not a Detector"):
        with pytest.raises(SettingError, match=re.escape(f"data._target_={target}: {said}")):
            check_group("data", OmegaConf.create({"_target_": target}))


def test_what_has_to_be_given_is_asked_for_as_it_is_typed() -> None:
    config = OmegaConf.create({"_target_": "anomaly_bench.data.table.load", "root": "???"})
    with pytest.raises(SettingError, match=r"^data\.root: has to be given, as in data\.root=VALUE$"):
        check_group("data", config)


def test_a_setting_that_comes_from_another_is_named_by_that_one() -> None:
    settings, _ = settings_of(["abnormal_class=-3000000000"])
    with pytest.raises(SettingError, match=r"^abnormal_class=-3000000000: must be a whole number from 0"):
        check_group("protocol", settings.protocol)
    settings, _ = settings_of(["protocol.abnormal_class=-3000000000"])
    with pytest.raises(SettingError, match=r"^protocol\.abnormal_class=-3000000000: must be"):
        check_group("protocol", settings.protocol)
